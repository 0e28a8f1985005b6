"""Agreement with math-verify's own published test cases.

`math_pairs_published.jsonl` has the pairs and labels of the tests in math-verify 0.9.0's source distribution on PyPI
(tests/test_all.py, test_boxed.py, test_numina_cases.py, test_open_thoughts.py, test_strict.py, test_yujianll.py;
Apache License 2.0, Hugging Face), with the options that correspond to what those tests set: `precision` is `places`,
`strict=False` is `rename`, `allow_set_relation_comp=False` is `relations_are_sets=False`. math-verify has no notion
of an answer that is not worked out, so `allow_unevaluated` is on throughout; a reference that is a whole solution is
marked with `reference="last_formula"`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quintain.verdict import Outcome

from .math_pairs_judged import outcome

ROWS = [json.loads(line) for line in (Path(__file__).parent / "math_pairs_published.jsonl").read_text().splitlines()]

DISAGREEMENTS = {
    ("$1 - \\frac{1}{\\mathrm{e}}$", "$1 + \\frac{1}{\\mathrm{e}}$"): "labelled equal in 0.9.0, and not since",
    ("$28\\%$", "28"): "12 % is not 12; the option percent='lenient' lets an answer leave out the sign",
    ("$x = 11$", "$x = 5+5+1 = 7 =11$"): "a chain with a false step claims nothing",
    ("$x = 1/3$", "$x = 5+5+1 = 1/3 \\approx 11$"): "a chain with a false step claims nothing",
    ("$z = 1 + 1 = 2$", "$z = 3+3 = 2$"): "a chain with a false step claims nothing",
    (
        "\\\\boxed{W(n) = 1 \\\\text{ and } W(n) = -1",
        "W(x)=1orW(x)=-1",
    ): "W(n) is not W(x); the option rename lets variables have other names",
}
"""(reference, answer) of the cases that are judged otherwise here, and why."""


def judged(row: dict[str, Any]) -> Outcome:
    """What is said here of a case."""
    return outcome(row["answer"], row["reference"], allow_unevaluated=True, **row.get("options", {}))


@pytest.fixture(scope="module")
def disagreements() -> set[tuple[str, str]]:
    return {(row["reference"], row["answer"]) for row in ROWS if (judged(row) is Outcome.CORRECT) is not row["equal"]}


def test_the_published_cases_are_all_there() -> None:
    assert len(ROWS) == 275
    assert sum(not row["equal"] for row in ROWS) == 43


def test_we_agree_with_at_least_97_percent_of_them(disagreements: set[tuple[str, str]]) -> None:
    assert len(disagreements) <= 0.03 * len(ROWS)


def test_every_disagreement_is_known_and_has_its_reason(disagreements: set[tuple[str, str]]) -> None:
    assert disagreements == set(DISAGREEMENTS)


def test_the_option_that_is_nearest_to_theirs_leaves_only_the_label_that_was_wrong() -> None:
    assert outcome("28", "$28\\%$", percent="lenient") is Outcome.CORRECT
