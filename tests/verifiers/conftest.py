"""Fixtures for the verifiers: worker pools over the functions in `pool_checks`, and a tiny reward model."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from quintain.verifiers.workers.pool import WorkerPool


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


@pytest.fixture(scope="session")
def make_tiny_classifier() -> Callable[..., str]:
    """The function of that name, which writes a tiny sequence classifier into a folder."""
    spec = importlib.util.spec_from_file_location("tiny_classifier", Path(__file__).with_name("tiny_classifier.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., str] = module.make_tiny_classifier
    return make


@pytest.fixture(scope="session")
def tiny_classifier(make_tiny_classifier: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny sequence classifier of one label."""
    return make_tiny_classifier(tmp_path_factory.mktemp("classifier"))
