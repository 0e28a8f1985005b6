"""One code verifier for all tests of a file, and a way to ask it."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from quintain.verdict import Verdict
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Verifier

Ask = Callable[[str, Any], Awaitable[Verdict]]
SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def verifier() -> AsyncIterator[Verifier]:
    """A verifier with the namespaces sandbox, whose programs get five seconds."""
    async with get_verifier("code", slots=3, limits={"wall_s": 5.0}) as verifier:
        yield verifier


@pytest.fixture
def ask(verifier: Verifier) -> Ask:
    """The verdict on one answer; code is put into a fenced block unless it has one."""

    async def ask(answer: str, reference: Any) -> Verdict:
        (verdict,) = await verifier.verify(
            [Item(answer if "```" in answer else f"```python\n{answer}\n```", reference)]
        )
        return verdict

    return ask


@pytest.fixture(scope="session")
def human_eval() -> list[dict[str, Any]]:
    """The problems of HumanEval."""
    spec = importlib.util.spec_from_file_location("get_human_eval", SCRIPTS / "get_human_eval.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    problems: list[dict[str, Any]] = module.problems()
    return problems
