"""Fixtures for the verifiers: worker pools over the functions in `pool_checks`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quintain.verifiers.pool import WorkerPool


@pytest.fixture
def pool_checks(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the module of check functions, importable here and in workers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "pool_checks"


@pytest.fixture
async def pool(pool_checks: str) -> AsyncIterator[WorkerPool]:
    """A pool of two workers that do what their items say."""
    async with WorkerPool(f"{pool_checks}:check", size=2, memory_bytes=1 << 29) as pool:
        yield pool
