"""Rubrics: the plan by properties, the verifier with real parts and with parts that count what they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.base import Cost, Verifier
from quintain.verifiers.rubric.plan import FAILED, Finding, Mode, Part, decided, next_part

MODES: list[Mode] = ["weighted_sum", "gate", "sequence", "maximum"]
FINDINGS = st.one_of(st.sampled_from([0.0, 1.0, FAILED]), st.floats(0, 1))


@st.composite
def rubrics(draw: st.DrawFn) -> tuple[Mode, list[Part], list[Finding]]:
    mode = draw(st.sampled_from(MODES))
    size = draw(st.integers(2 if mode == "gate" else 1, 5))
    target = draw(st.integers(0, size - 1))
    parts = [
        Part(
            weight=draw(st.floats(0.01, 10)),
            passes_at=draw(st.sampled_from([0.5, 1.0])),
            gate=mode == "gate" and place != target,
            cost=draw(st.integers(1, 5)),
        )
        for place in range(size)
    ]
    return mode, parts, [draw(FINDINGS) for _ in parts]


def asked_in_turn(mode: Mode, parts: Sequence[Part], findings: Sequence[Finding]) -> tuple[Finding, list[int]]:
    found: dict[int, Finding] = {}
    while (result := decided(mode, parts, found)) is None:
        place = next_part(mode, parts, found)
        assert place not in found
        found[place] = findings[place]
    return result, list(found)


@given(rubrics())
def test_stopping_early_decides_what_asking_everybody_would(rubric: tuple[Mode, list[Part], list[Finding]]) -> None:
    mode, parts, findings = rubric
    everything = decided(mode, parts, dict(enumerate(findings)))
    early, _ = asked_in_turn(mode, parts, findings)
    assert early == everything or early == pytest.approx(everything)


@given(rubrics(), st.data())
def test_more_findings_never_overturn_a_decision(
    rubric: tuple[Mode, list[Part], list[Finding]], data: st.DataObject
) -> None:
    mode, parts, findings = rubric
    known = data.draw(st.sets(st.sampled_from(range(len(parts)))))
    some = decided(mode, parts, {place: findings[place] for place in known})
    if some is not None:
        assert some == decided(mode, parts, dict(enumerate(findings)))


@given(rubrics())
def test_a_score_is_between_0_and_1_and_all_ones_make_1(rubric: tuple[Mode, list[Part], list[Finding]]) -> None:
    mode, parts, findings = rubric
    result, _ = asked_in_turn(mode, parts, findings)
    assert result is FAILED or 0.0 <= result <= 1.0
    assert decided(mode, parts, dict.fromkeys(range(len(parts)), 1.0)) == 1.0
    assert decided(mode, parts, dict.fromkeys(range(len(parts)), 0.0)) == 0.0


@given(rubrics(), st.data())
def test_the_order_of_the_parts_does_not_matter_but_in_a_sequence(
    rubric: tuple[Mode, list[Part], list[Finding]], data: st.DataObject
) -> None:
    mode, parts, findings = rubric
    if mode == "sequence":
        return
    order = data.draw(st.permutations(range(len(parts))))
    one, _ = asked_in_turn(mode, parts, findings)
    other, _ = asked_in_turn(mode, [parts[place] for place in order], [findings[place] for place in order])
    assert one == other or one == pytest.approx(other)


@given(rubrics())
def test_the_cheap_are_asked_before_the_dear(rubric: tuple[Mode, list[Part], list[Finding]]) -> None:
    mode, parts, findings = rubric
    _, asked = asked_in_turn(mode, parts, findings)
    costs = [parts[place].cost for place in asked]
    assert asked == sorted(asked) if mode == "sequence" else costs == sorted(costs)


EXAMPLES: list[tuple[Mode, list[Part], list[Finding], Finding, list[int]]] = [
    ("weighted_sum", [Part(1.0), Part(3.0)], [1.0, 0.5], 0.625, [0, 1]),
    ("weighted_sum", [Part(cost=2), Part(cost=1)], [1.0, FAILED], FAILED, [1]),
    ("gate", [Part(gate=True), Part(cost=5)], [1.0, 0.4], 0.4, [0, 1]),
    ("gate", [Part(gate=True), Part(cost=5)], [0.9, 0.4], 0.0, [0]),
    ("gate", [Part(gate=True, passes_at=0.5), Part(cost=5)], [0.5, 0.4], 0.4, [0, 1]),
    ("gate", [Part(gate=True), Part(gate=True), Part(cost=5)], [FAILED, 0.0, 1.0], 0.0, [0, 1]),
    ("gate", [Part(gate=True), Part(cost=5)], [FAILED, 0.0], 0.0, [0, 1]),
    ("gate", [Part(gate=True), Part(cost=5)], [FAILED, 1.0], FAILED, [0, 1]),
    ("sequence", [Part(1.0), Part(1.0), Part(2.0)], [1.0, 0.5, 1.0], 0.375, [0, 1]),
    ("sequence", [Part(cost=5), Part(cost=1)], [0.0, 1.0], 0.0, [0]),
    ("sequence", [Part(), Part(), Part()], [1.0, FAILED, 1.0], FAILED, [0, 1]),
    ("maximum", [Part(cost=5), Part(cost=1)], [0.2, 1.0], 1.0, [1]),
    ("maximum", [Part(), Part()], [0.2, 0.6], 0.6, [0, 1]),
    ("maximum", [Part(), Part()], [FAILED, 1.0], 1.0, [0, 1]),
    ("maximum", [Part(), Part()], [FAILED, 0.9], FAILED, [0, 1]),
]


@pytest.mark.parametrize(("mode", "parts", "findings", "result", "asked"), EXAMPLES)
def test_the_examples(
    mode: Mode, parts: list[Part], findings: list[Finding], result: Finding, asked: list[int]
) -> None:
    assert asked_in_turn(mode, parts, findings) == (result, asked)


# With real parts

RUBRIC = """
mode: gate
parts:
  - {verifier: format, gate: true, options: {tags: [answer]}}
  - verifier: rubric
    options:
      mode: weighted_sum
      parts:
        - {verifier: exact, weight: 0.75, options: {tag: answer}, reference_key: capital}
        - {verifier: length, weight: 0.25, options: {maximum: 10, cache: 0}, reference_key: size}
"""
REFERENCE = {"capital": "Paris", "size": {}}


def test_a_nested_rubric_from_yaml_scores_and_tells_how() -> None:
    answers = ["<answer>Paris</answer>", "<answer>Rome</answer>", "Paris", "<answer>Paris</answer>" + " x" * 20]
    verdicts = verify_sync("rubric", [Item(answer, REFERENCE) for answer in answers], yaml.safe_load(RUBRIC))
    assert [verdict.score for verdict in verdicts] == [1.0, 0.25, 0.0, 0.75]
    outcomes = [Outcome.CORRECT, Outcome.PARTIAL, Outcome.WRONG, Outcome.PARTIAL]
    assert [verdict.outcome for verdict in verdicts] == outcomes
    first, _, shut, _ = (verdict.detail["parts"] for verdict in verdicts)
    assert [part["name"] for part in first] == ["format", "rubric"]
    assert [part["score"] for part in first[1]["detail"]["parts"]] == [1.0, 1.0]
    assert shut[1] == {"name": "rubric", "weight": 1.0, "asked": False}


def test_a_missing_reference_fails_the_rubric_unless_it_is_decided_without() -> None:
    items = [Item("<answer>Paris</answer>", {"size": {}}), Item("Paris", {"size": {}}), Item("<answer>x</answer>", 5)]
    needed, shut, wrong = verify_sync("rubric", items, yaml.safe_load(RUBRIC))
    assert needed.outcome is Outcome.BAD_REFERENCE
    assert needed.detail["failed_part"] == "rubric"
    assert shut.score == 0.0
    assert wrong.outcome is Outcome.BAD_REFERENCE


class Counting(Verifier):
    """Gives the score that the answer names for it, and counts."""

    name: ClassVar[str] = "counting"
    version = "1"

    def __init__(self, cost: int, key: str) -> None:
        self.cost, self.key, self.asked, self.closed = Cost(cost), key, 0, False

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        self.asked += len(items)
        return [Verdict.scored(float(item.reference[self.key])) for item in items]

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    made: list[Counting] = []

    def get(name: str, **options: Any) -> Verifier:
        made.append(Counting(**options))
        return made[-1]

    monkeypatch.setattr("quintain.verifiers.rubric.verifier.get_verifier", get)
    return made


async def test_the_dear_part_is_asked_only_about_what_the_cheap_ones_left_open(counting: list[Counting]) -> None:
    parts = [
        {"verifier": "x", "options": {"cost": 5, "key": "judge"}},
        {"verifier": "x", "gate": True, "options": {"cost": 1, "key": "format"}},
    ]
    items = [Item("", {"judge": 0.5, "format": n % 2}) for n in range(10)]
    async with get_verifier("rubric", mode="gate", parts=parts) as rubric:
        verdicts = await rubric.verify(items)
        assert rubric.cost is Cost.REMOTE
    assert [verdict.score for verdict in verdicts] == [0.0, 0.5] * 5
    judge, layout = counting
    assert (judge.asked, layout.asked) == (5, 10)
    assert judge.closed
    assert layout.closed


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "parts"),
    ({"parts": []}, "parts"),
    ({"parts": [{"verifier": "exat"}]}, "did you mean 'exact'"),
    ({"parts": [{"verifier": "exact", "options": {"tags": 1}}]}, "in a rubric: the exact verifier"),
    ({"parts": [{"verifier": "exact", "weight": -1}]}, "weight"),
    ({"parts": [{"verifier": "exact", "wieght": 1}]}, "weight"),
    ({"mode": "gate", "parts": [{"verifier": "exact"}]}, "gate"),
    ({"mode": "gate", "parts": [{"verifier": "exact", "gate": True}]}, "gate"),
    ({"mode": "maximum", "parts": [{"verifier": "exact", "gate": True}]}, "gate"),
    ({"mode": "minimum", "parts": [{"verifier": "exact"}]}, "mode"),
]


@pytest.mark.parametrize(("options", "says"), WRONG_OPTIONS)
def test_a_rubric_that_makes_no_sense_is_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(QuintainError, match=says) as refused:
        get_verifier("rubric", **options)
    assert "\n" not in str(refused.value)


def test_a_rubric_within_itself_is_refused() -> None:
    endless: dict[str, Any] = {"verifier": "rubric", "options": {"parts": []}}
    endless["options"]["parts"].append(endless)
    with pytest.raises(QuintainError, match="nest at most"):
        get_verifier("rubric", parts=[endless])
