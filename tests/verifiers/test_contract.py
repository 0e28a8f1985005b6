"""What holds for every verifier there is, by name: one verdict for each item, in order, whatever the items are."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Verifier
from quintain.verifiers.registry import BUILT_IN, verifier_class


@dataclass(frozen=True)
class Case:
    """How a verifier is made here; an item it calls correct, one it does not; references it must refuse."""

    options: dict[str, Any] = field(default_factory=dict)
    right: Item | None = None
    wrong: Item | None = None
    bad_references: tuple[Any, ...] = ()


SCHEMA = "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);"
TOOL = {"function": [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}]}
LEGS = {"dataset": "leg_counting", "entry": {"question": "?", "answer": "12", "metadata": {}}}
NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
NOT_A_TEXT = (None, 5, [], {}, "", object())

ADD = {"kind": "function", "entry_point": "add", "tests": "def check(add): assert add(1, 2) == 3"}

CASES: dict[str, Case] = {
    "code": Case(
        {},
        Item("```python\ndef add(a, b): return a + b\n```", ADD),
        Item("```python\ndef add(a, b): return a - b\n```", ADD),
        (None, 5, [], {}, "x", {"kind": "x"}, ADD | {"tests": ""}, ADD | {"tests": "def check(add): ("}, object()),
    ),
    "exact": Case({}, Item("a", "a"), Item("b", "a"), NOT_A_TEXT),
    "format": Case({"tags": ["a"]}, Item("<a>1</a>", None), Item("1", None)),
    "instruction_following": Case({}, Item("a b", NO_COMMA), Item("a, b", NO_COMMA), (None, 5, [], {}, "x", object())),
    "json_schema": Case(
        {"deadline_s": 10.0},
        Item("1", {"type": "integer"}),
        Item("x", {}),
        (None, 5, [], "x", {"type": 5}, {"x": object()}),
    ),
    "judge": Case({"model": "m", "retries": 0}, None, None, (None, 5, [], {}, "", object())),
    "length": Case(
        {"maximum": 4, "cache": 0}, Item("a", None), Item("a " * 9, None), ({"length": "x"}, {"length": -1})
    ),
    "math": Case({"deadline_s": 10.0}, Item("25", 25), Item("24", 25), (None, [], {}, "", object(), float("nan"))),
    "multiple_choice": Case({}, Item("B", "B"), Item("A", "B"), (None, [], {}, "", "BB", -1, object())),
    "reasoning_gym": Case({"deadline_s": 60.0}, Item("12", LEGS), Item("13", LEGS), (None, 5, [], {}, "x", object())),
    "regex": Case({"deadline_s": 10.0}, Item("abc", "b"), Item("abc", "x"), (None, 5, [], {}, "", "(", object())),
    "remote": Case({"verifier": "exact", "patience_s": 0.0}, None, None, (object(), float("nan"))),
    "reward_model": Case({}, None, None, (5, [], {}, "", object())),
    "rubric": Case({"parts": [{"verifier": "exact"}]}, Item("a", "a"), Item("b", "a"), NOT_A_TEXT),
    "sql": Case(
        {"deadline_s": 10.0},
        Item("SELECT a FROM t", {"query": "SELECT a FROM t", "schema": SCHEMA}),
        Item("SELECT 1", {"query": "SELECT a FROM t", "schema": SCHEMA}),
        (None, 5, [], {}, "SELECT 1", {"query": 5}, object()),
    ),
    "token_f1": Case({}, Item("a cat", "cat"), Item("dog", "cat"), NOT_A_TEXT),
    "tool_call": Case(
        {},
        Item("f(a=1)", TOOL | {"ground_truth": [{"f": {"a": [1]}}]}),
        Item("f(a=2)", TOOL | {"ground_truth": [{"f": {"a": [1]}}]}),
        (None, 5, [], {}, "x", TOOL, object()),
    ),
}

ABSURD: list[Any] = [
    "",
    " \n\t ",
    "\0",
    "a\0b" * 10,
    "\ud800",
    "x\udfff\ud800y",
    "\U0010ffff\ufeff\u202e",
    "x" * 1_000_000,
    "[" * 1_000_000,
    "`" * 1_000_000,
    "<think>" * 100_000,
    "\n" * 1_000_000,
    "<answer>" * 50_000 + "</answer>" * 50_000,
    "\\boxed{" * 50_000,
    "```json\n" * 50_000,
    "a b " * 250_000,
    "x" * 5_000_000,
    None,
    5,
    b"bytes",
    ["a"],
]
"""Answers that no model should give."""

Made = Callable[[str], Verifier]


together = pytest.mark.asyncio(loop_scope="module")
"""Tests that ask the same verifiers."""


@pytest.fixture(scope="module")
def fresh(request: pytest.FixtureRequest) -> Made:
    """Makes a verifier by its name."""

    def make(name: str) -> Verifier:
        options = dict(CASES.get(name, Case()).options)
        if name == "reward_model":
            options["model"] = request.getfixturevalue("tiny_classifier")
        if name in ("judge", "remote"):
            with socket.socket() as free:  # nobody is at this address
                free.bind(("127.0.0.1", 0))
                options["url"] = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        return get_verifier(name, **options)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(fresh: Made) -> AsyncIterator[Made]:
    """The verifier of that name, which has been asked what the tests before asked."""
    kept: dict[str, Verifier] = {}

    def find(name: str) -> Verifier:
        if name not in kept:
            kept[name] = fresh(name)
        return kept[name]

    yield find
    for verifier in kept.values():
        await verifier.close()


def check_sound(verdicts: list[Verdict], items: list[Item]) -> None:
    assert len(verdicts) == len(items)
    for verdict in verdicts:
        assert isinstance(verdict, Verdict)
        assert math.isfinite(verdict.elapsed_s)
        assert verdict.elapsed_s >= 0
        told = {"detail": dict(verdict.detail), "failure": None if verdict.failure is None else verdict.failure.message}
        json.dumps(told, ensure_ascii=False, allow_nan=False).encode()  # as the service will send it


@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_nothing_asked_is_nothing_answered_and_closing_twice_is_allowed(name: str, fresh: Made) -> None:
    verifier = fresh(name)
    assert verifier.name == name
    assert verifier.version
    assert await verifier.verify([]) == []
    await verifier.close()
    await verifier.close()


@together
@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_verdicts_come_one_for_each_item_in_order(name: str, made: Made) -> None:
    case = CASES.get(name, Case())
    if case.right is None or case.wrong is None:
        assert name not in CASES or name in ("judge", "remote", "reward_model")  # their scores are somebody else's
        return
    items = [case.right if n % 3 == 0 else case.wrong for n in range(30)]
    verifier = made(name)
    first, second = await asyncio.gather(verifier.verify(items), verifier.verify(items[::-1]))
    check_sound(first, items)
    assert [verdict.outcome is Outcome.CORRECT for verdict in first] == [n % 3 == 0 for n in range(30)]
    assert [verdict.score for verdict in second] == [verdict.score for verdict in first[::-1]]


@together
@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_absurd_answers_get_a_verdict_and_never_an_exception(name: str, made: Made) -> None:
    case = CASES.get(name, Case())
    reference = case.right.reference if case.right is not None else "x"
    items = [Item(answer, reference) for answer in ABSURD]
    if case.right is not None:
        items.append(case.right)
    verdicts = await made(name).verify(items, deadline_s=20.0)
    check_sound(verdicts, items)
    assert verdicts[-1].outcome is Outcome.CORRECT or case.right is None


@together
@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_a_reference_of_the_wrong_kind_is_a_bad_reference_and_no_score(name: str, made: Made) -> None:
    case = CASES.get(name, Case())
    answer = case.right.answer if case.right is not None else "x"
    items = [Item(answer, reference) for reference in case.bad_references]
    verdicts = await made(name).verify(items, deadline_s=20.0)
    check_sound(verdicts, items)
    found = [(repr(item.reference)[:40], verdict.outcome) for item, verdict in zip(items, verdicts, strict=True)]
    assert found == [(reference, Outcome.BAD_REFERENCE) for reference, _ in found]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_options_have_a_json_schema_and_an_unknown_one_is_refused_in_one_line(name: str) -> None:
    known = verifier_class(name)
    assert known is not None
    assert known.name == name
    schema = known.options_schema()
    json.dumps(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"]
    with pytest.raises(QuintainError) as refused:
        get_verifier(name, **CASES.get(name, Case()).options, no_such_option=1)
    assert "no_such_option" in str(refused.value) or "required" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_verifier_is_known_here() -> None:
    assert set(CASES) >= set(BUILT_IN)
