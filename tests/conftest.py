"""For all tests: hypothesis has no stopwatch (two cores are shared), and a failure says how to repeat it.

What starts a program that is heavy by itself is slow, and the tests of a file stay on one worker (`--dist loadgroup`),
since they share its fixtures.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("quintain", deadline=None, print_blob=True)
settings.load_profile("quintain")

HEAVY = ("needs_vllm", "needs_docker", "packaging")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(marker) for marker in HEAVY):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
