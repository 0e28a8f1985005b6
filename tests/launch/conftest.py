"""Fixtures of the tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .runs import Run, make_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a whole run (processes with torch, one after the other) takes more than ten seconds."""
    for item in items:
        if {"run", "tiny_model"} <= set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings and SmolLM2's tokenizer, from a seed."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Iterator[Run]:
    made = Run(tmp_path, tiny_model)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
