"""HumanEval's reference solutions pass, and each of them with its body replaced fails.

A mutated solution that is right all the same is listed by name, with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest

from quintain.verdict import Outcome
from quintain.verifiers import Item
from quintain.verifiers.base import Verifier

pytestmark = pytest.mark.asyncio(loop_scope="module")

Problem = dict[str, Any]
Mutation = Callable[[Problem], str | None]


def reference_of(problem: Problem) -> dict[str, Any]:
    fields = {"entry_point": problem["entry_point"], "prompt": problem["prompt"], "tests": problem["test"]}
    return {"kind": "function", **fields}


def constant(value: str) -> Mutation:
    """The body gives `value`, whatever it is given."""
    return lambda problem: f"    return {value}\n"


def identity(problem: Problem) -> str:
    """The body gives the first argument back."""
    arguments = entry_of(problem).args
    return f"    return {(arguments.posonlyargs + arguments.args)[0].arg}\n"


def off_by_one(problem: Problem) -> str | None:
    """The right result, one more: of a number, of the first number or character of a sequence; True for False."""
    return f"""{problem["canonical_solution"]}

def _more(value):
    if value is None: return 1
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, str): return chr(ord(value[0]) + 1) + value[1:] if value else "a"
    if isinstance(value, (list, tuple)): return type(value)([_more(value[0]), *value[1:]] if value else [0])
    if isinstance(value, dict): return value | {{"one more": 1}}
    if isinstance(value, set): return value | {{"one more"}}
    raise TypeError(type(value))

_right = {problem["entry_point"]}
def {problem["entry_point"]}(*args):
    return _more(_right(*args))
"""


def entry_of(problem: Problem) -> ast.FunctionDef:
    tree = ast.parse(problem["prompt"] + "    pass\n")
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == problem["entry_point"])


MUTATIONS: dict[str, tuple[Mutation, dict[str, str]]] = {
    "none": (constant("None"), {}),
    "zero": (constant("0"), {}),
    "empty text": (constant("''"), {}),
    "empty list": (constant("[]"), {}),
    "first argument": (identity, {}),
    "off by one": (off_by_one, {}),
}
"""Each with the problems that it leaves right, and why."""


async def test_all_reference_solutions_pass(verifier: Verifier, human_eval: list[Problem]) -> None:
    assert len(human_eval) == 164
    items = [Item(problem["canonical_solution"], reference_of(problem)) for problem in human_eval]
    verdicts = await verifier.verify(items)
    wrong = [(p["task_id"], v) for p, v in zip(human_eval, verdicts, strict=True) if v.score != 1.0]
    assert wrong == []


async def test_all_reference_solutions_pass_as_whole_functions_in_a_fence(
    verifier: Verifier, human_eval: list[Problem]
) -> None:
    items = [
        Item(f"Here it is:\n```python\n{p['prompt']}{p['canonical_solution']}\n```\nDone.", reference_of(p))
        for p in human_eval
    ]
    assert {verdict.outcome for verdict in await verifier.verify(items)} == {Outcome.CORRECT}


@pytest.mark.parametrize(
    "share", [pytest.param(len(MUTATIONS), id="one"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", sorted(MUTATIONS))
async def test_every_solution_with_its_body_replaced_fails(
    name: str, share: int, verifier: Verifier, human_eval: list[Problem]
) -> None:
    """In one of the ways, another for each solution, or in all of them."""
    mutate, still_right = MUTATIONS[name]
    at = sorted(MUTATIONS).index(name) % share
    problems = [problem for problem in human_eval[at::share] if mutate(problem) is not None]
    verdicts = await verifier.verify([Item(mutate(problem) or "", reference_of(problem)) for problem in problems])
    assert all(verdict.failure is None for verdict in verdicts)
    passed = {p["task_id"] for p, v in zip(problems, verdicts, strict=True) if v.outcome is Outcome.CORRECT}
    assert passed == set(still_right) & {problem["task_id"] for problem in problems}
