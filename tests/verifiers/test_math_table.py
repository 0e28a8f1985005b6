"""The labelled table: answers beside references, with the outcome that a careful person would give.

`math_pairs.yaml` holds the families with their reasons; `math_pairs_perturbed.py` makes one wrong answer after the
other out of right ones. One test for each family names every row that is judged wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintain.verdict import Outcome
from quintain.verifiers import Item, verify_sync

from .math_pairs_judged import outcome
from .math_pairs_perturbed import RIGHT, WRONG, perturbed

TABLE = yaml.safe_load((Path(__file__).parent / "math_pairs.yaml").read_text())
ALLOWED = {
    "equal": {Outcome.CORRECT},
    "different": {Outcome.WRONG, Outcome.UNPARSABLE},
    "unreadable": {Outcome.UNPARSABLE},
    "bad_reference": {Outcome.BAD_REFERENCE},
}
SCORES = {Outcome.CORRECT: 1.0, Outcome.BAD_REFERENCE: None}


def rows_of(family: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(answer, reference, label) of each row of a family, perturbations included."""
    for label in ALLOWED:
        for answer, reference in family.get(label, []):
            yield answer, reference, label
    seeds = family.get("seeds", [])
    for place, seed in enumerate(seeds):
        yield seed, seed, "equal"
        for other in (seeds[place - 1], seeds[place - 8]):
            yield other, seed, "different"
        for _, text in perturbed(seed, WRONG):
            yield text, seed, "different"
        for _, text in perturbed(seed, RIGHT):
            yield text, seed, "equal"


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family["family"])
def test_every_row_of_the_family_is_judged_as_its_label_says(family: dict[str, Any]) -> None:
    mistakes = []
    for answer, reference, label in rows_of(family):
        found = outcome(answer, reference, **family.get("options", {}))
        if found not in ALLOWED[label]:
            mistakes.append(f"{label}: {answer!r} beside {reference!r} is {found}")
    assert not mistakes, "\n".join(mistakes)


def test_the_verifier_as_a_whole_says_the_same_of_every_row() -> None:
    rows = [row for family in TABLE if "options" not in family for row in rows_of(family)]
    items = [Item(answer, reference) for answer, reference, _ in rows]
    verdicts = verify_sync("math", items, {"deadline_s": 60.0, "workers": 2})
    mistakes = [
        f"{label}: {answer!r} beside {reference!r} is {verdict.outcome} ({verdict.detail}, {verdict.failure})"
        for (answer, reference, label), verdict in zip(rows, verdicts, strict=True)
        if verdict.outcome not in ALLOWED[label] or verdict.score != SCORES.get(verdict.outcome, 0.0)
    ]
    assert not mistakes, "\n".join(mistakes)


def test_the_table_is_large_and_at_least_half_of_it_is_not_equal() -> None:
    labels = [label for family in TABLE for _, _, label in rows_of(family)]
    assert len(labels) >= 900
    assert labels.count("different") >= len(labels) / 2
    by_hand = [row for family in TABLE for label in ALLOWED for row in family.get(label, [])]
    assert len(by_hand) >= 400


def test_every_family_says_why() -> None:
    assert all(len(family["why"]) > 20 for family in TABLE)


def test_no_wrong_answer_of_the_table_is_spelled_like_its_reference() -> None:
    assert [row for family in TABLE for row in rows_of(family) if row[2] == "different" and row[0] == row[1]] == []
