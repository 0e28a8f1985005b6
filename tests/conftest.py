"""For all tests: hypothesis has no stopwatch (two cores are shared), a failure says how to repeat it, and a test's own
request waits for a minute, not for the five seconds of httpx, which a server that shares its core may need.

What starts a program that is heavy by itself is slow. Of several workers one gets all tests of a file, since they share
its fixtures; but whole runs share nothing, so any worker may take the next.
"""

from __future__ import annotations

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(marker) for marker in HEAVY):
            item.add_marker(pytest.mark.slow)


class ByFile(LoadScopeScheduling):
    """Names what a worker takes at once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith("tests/launch/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)
