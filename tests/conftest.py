"""For all tests: hypothesis has no stopwatch (two cores are shared), a failure says how to repeat it, and a test's own
request waits for a minute, not for the five seconds of httpx, which a server that shares its core may need.

What starts a program that is heavy by itself is slow. Of several workers one gets all tests of a file, since they share
its fixtures; but whole runs share nothing, so any worker may take the next, and they come last: none is left with much
to do when the others are done. Where only slow tests are asked for, files that have none are not imported.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("quintain", deadline=None, print_blob=True)
settings.load_profile("quintain")

for asks in (httpx.Client.__init__, httpx.AsyncClient.__init__, httpx.request, httpx.get, httpx.post):
    assert asks.__kwdefaults__["timeout"] == httpx.Timeout(5.0)
    asks.__kwdefaults__["timeout"] = httpx.Timeout(60.0)

HEAVY = ("needs_vllm", "needs_docker", "packaging")
LOOKS_SLOW = re.compile("|".join(("slow", r": Run\b", *HEAVY)))
"""What is somewhere in every file that has a slow test."""
WHOLE_RUNS = "tests/launch/"
LONGEST = "tests/rollout/vllm/test_two_replicas.py"
"""Of what runs beside it, so it comes first."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.option.markexpr.startswith("slow") or not collection_path.match("test_*.py"):
        return None
    return LOOKS_SLOW.search(collection_path.read_text()) is None or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(marker) for marker in HEAVY):
            item.add_marker(pytest.mark.slow)
    for path in {item.path for item in items if item.get_closest_marker("slow")}:
        if not LOOKS_SLOW.search(path.read_text()):
            raise pytest.UsageError(f"{path} has a slow test, and `make test-slow` would miss it: say so in the file")
    items.sort(key=lambda item: item.nodeid.startswith(WHOLE_RUNS) - item.nodeid.startswith(LONGEST))


class ByFile(LoadScopeScheduling):
    """Names what a worker takes at once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(WHOLE_RUNS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)
