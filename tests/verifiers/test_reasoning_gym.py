"""The reasoning-gym verifier, over all of its families, and what a hostile answer can do to its scorers (nothing)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.rules.reasoning_gym.guard import arithmetic, mathematics

COMPOSITE = "composite"
OWN_ANSWER = {
    "graph_color": lambda entry: json.dumps(entry["metadata"]["possible_answer"]),
    "propositional_logic": lambda entry: entry["metadata"]["example_answer"],
    "rubiks_cube": lambda entry: entry["metadata"]["example_correct_answer"],
}
NO_KNOWN_ANSWER = {"boxnet", "rush_hour"}
"""Their entries hold no answer: a wrong one is all that can be tried."""
RAISES = {"prime_factorization"}
"""Its scorer raises on what is no product of numbers."""


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Any]]:
    """An entry of every family, as it is after a journey through JSON."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - {COMPOSITE})
    made = {name: reasoning_gym.create_dataset(name, seed=42, size=3)[0] for name in names}
    mixture = [reasoning_gym.composite.DatasetSpec(name="leg_counting", weight=1, config={})]
    made[COMPOSITE] = reasoning_gym.create_dataset(COMPOSITE, seed=1, size=3, datasets=mixture)[0]
    return {name: json.loads(json.dumps(entry)) for name, entry in made.items()}


@pytest.mark.slow
async def test_in_every_family_the_own_answer_scores_1_and_nonsense_does_not(
    entries: dict[str, dict[str, Any]],
) -> None:
    assert len(entries) >= 100
    names = sorted(entries)
    right = [OWN_ANSWER.get(name, lambda entry: entry["answer"])(entries[name]) or "" for name in names]
    async with get_verifier("reasoning_gym", workers=2, deadline_s=60.0) as verifier:
        references = [{"dataset": name, "entry": entries[name]} for name in names]
        items = [Item(answer, reference) for answer, reference in zip(right, references, strict=True)]
        items += [Item("xyzzy ;-)", reference) for reference in references]
        verdicts = await verifier.verify(items)
    own, nonsense = verdicts[: len(names)], verdicts[len(names) :]
    missed = {name for name, verdict in zip(names, own, strict=True) if verdict.outcome is not Outcome.CORRECT}
    assert missed == NO_KNOWN_ANSWER
    low = [verdict.score is not None and verdict.score <= 0.1 for verdict in nonsense]
    assert [
        (name, str(verdict)) for name, verdict, is_low in zip(names, nonsense, low, strict=True) if not is_low
    ] == []
    unparsable = {name for name, verdict in zip(names, nonsense, strict=True) if verdict.outcome is Outcome.UNPARSABLE}
    assert unparsable <= RAISES


@pytest.fixture(scope="module")
def legs() -> dict[str, Any]:
    return {"dataset": "leg_counting", "entry": {"question": "?", "answer": "12", "metadata": {}}}


async def test_the_answer_is_in_its_tag_or_all_there_is_and_bad_references_are_told(legs: dict[str, Any]) -> None:
    rows: list[tuple[str, Any, Outcome]] = [
        ("12", legs, Outcome.CORRECT),
        ("<think>13</think>12", legs, Outcome.CORRECT),
        ("It is <answer>12</answer>.", legs, Outcome.CORRECT),
        ("It is 12.", legs, Outcome.PARTIAL),
        ("13", legs, Outcome.WRONG),
        ("", legs, Outcome.UNPARSABLE),
        (
            "2 x x",
            {"dataset": "prime_factorization", "entry": {"answer": "2 × 3", "metadata": {"number": 6}}},
            Outcome.UNPARSABLE,
        ),
        ("2", {"dataset": "prime_factorization", "entry": {"answer": "x", "metadata": {}}}, Outcome.CRASHED),
        ("12", {"dataset": "leg_countin", "entry": legs["entry"]}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting"}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting", "entry": {"metadata": {}}}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting", "config": {"sede": 1}, "index": 0}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting", "config": {"min_animals": -3}, "index": 0}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting", "config": {}, "index": -1}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "composite", "entry": {"answer": "12", "metadata": {}}}, Outcome.BAD_REFERENCE),
        ("12", {"dataset": "leg_counting", "entry": {"answer": {1, 2}}}, Outcome.BAD_REFERENCE),
        ("12", 12, Outcome.BAD_REFERENCE),
    ]
    async with get_verifier("reasoning_gym", workers=1, deadline_s=60.0) as verifier:
        verdicts = await verifier.verify([Item(answer, given_reference) for answer, given_reference, _ in rows])
        everything = [Item("It is 12.", legs)]
        assert (await verifier.verify(everything))[0].score == pytest.approx(2 / 9)
    found = [(row[0], verdict.outcome) for row, verdict in zip(rows, verdicts, strict=True)]
    assert found == [(answer, outcome) for answer, _, outcome in rows]


async def test_an_answer_is_never_run_as_a_programme_and_a_hang_costs_nobody_else(tmp_path: Path) -> None:
    marks = [tmp_path / f"mark{n}" for n in range(6)]
    write = "__import__('pathlib').Path({!r}).write_text('x')"
    walk = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'x'] or open({!r}, 'w')"
    lambdify = "lambdify(Symbol('x'), \"__import__('os').system('touch {}')\")(1)"
    evaluating = {
        "string_insertion": {"answer": "ABC", "metadata": {}},
        "spiral_matrix": {"answer": "1 2 3", "metadata": {}},
        "polynomial_multiplication": {"answer": "x**2", "metadata": {}},
        "simple_integration": {"answer": "x**2 + C", "metadata": {"integrand": "2*x", "variable": "x"}},
        "puzzle24": {"answer": "1*2*3*4", "metadata": {"numbers": [1, 2, 3, 4]}},
        "countdown": {"answer": "1 + 2", "metadata": {"numbers": [1, 2], "target": 3}},
    }
    items, right = [], []
    for mark, (name, entry) in zip(marks, evaluating.items(), strict=True):
        whole = {"dataset": name, "entry": {"question": "?", **entry}}
        attacks = [write.format(str(mark)), walk.format(str(mark)), lambdify.format(mark), "sympify('1')"]
        items += [Item(attack, whole) for attack in attacks]
        right.append(Item(str(entry["answer"]), whole))
    bomb = Item("9**9**9**9 + C", {"dataset": "simple_integration", "entry": evaluating["simple_integration"]})
    async with get_verifier("reasoning_gym", workers=2, deadline_s=20.0) as verifier:
        verdicts = await verifier.verify([*items, *right])
        [hung, after] = await verifier.verify([bomb, right[0]], deadline_s=3.0)
    assert [mark for mark in marks if mark.exists()] == []
    assert max(verdict.score or 0.0 for verdict in verdicts[: len(items)]) <= 0.05
    assert [verdict.score for verdict in verdicts[len(items) :]] == [1.0] * len(right)
    assert hung.score in (None, 0.0)
    assert after.score == 1.0


@pytest.mark.parametrize(
    ("source", "value"), [("['a', 'b']", ["a", "b"]), ("(0x1f + 3) << 2", 136), ("[[1, -2]]", [[1, -2]]), ("2 ** 3", 8)]
)
def test_literals_and_arithmetic_are_evaluated(source: str, value: Any) -> None:
    assert arithmetic(source) == value


HOSTILE = [
    "open('x')",
    "a",
    "a.b",
    "'{0.__class__}'.format(1)",
    "f'{1}'",
    "[x for x in 'ab']",
    "lambda: 1",
    "().x",
    "1 if 1 else 2",
]


@pytest.mark.parametrize("source", [*HOSTILE, "lambdify(1)", "Symbol('x').name", "__import__('os')", "x" * 50_000])
def test_everything_else_is_refused(source: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        arithmetic(source)
    with pytest.raises((ValueError, SyntaxError)):
        mathematics(source, {"Symbol": str, "lambdify": print})


@given(st.text(alphabet="abc._()[]'\"{}:,+*0 ", max_size=30))
def test_no_text_gets_at_a_name_that_was_not_given(source: str) -> None:
    with suppress(ValueError, SyntaxError, TypeError, ZeroDivisionError):  # and no NameError: it is never looked up
        value = arithmetic(source)
        assert isinstance(value, (int, float, str, bytes, complex, list, tuple, set, dict, type(None), type(...)))


def test_without_reasoning_gym_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintain.verifiers.options.find_spec", lambda name: None)
    with pytest.raises(QuintainError, match=r"pip install 'quintain\[reasoning-gym\]'"):
        get_verifier("reasoning_gym")


def test_a_number_of_gsm_symbolic_stands_alone() -> None:
    reference = {"dataset": "gsm_symbolic", "entry": {"question": "", "answer": "20", "metadata": {}}}
    answers = ["20", "$20.00", "-20", "not 20", "20 or 21", "20%"]
    verdicts = verify_sync("reasoning_gym", [Item(answer, reference) for answer in answers], {"workers": 1})
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
