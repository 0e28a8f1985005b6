"""The examples of docs/verifiers/math.md, run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quintain.verdict import Outcome

from .math_pairs_judged import outcome

PAGE = (Path(__file__).parents[2] / "docs/verifiers/math.md").read_text()
ROW = re.compile(r"^\| `(.+?)` \| `(.+?)` \| (.*) \|$", re.MULTILINE)


def rows(section: str) -> list[tuple[str, str, str]]:
    """(answer, reference, the rest) of the table of a section."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [(answer.replace(r"\n", "\n"), reference, rest) for answer, reference, rest in ROW.findall(text)]


@pytest.mark.parametrize(("answer", "reference", "why"), rows("Accepted"))
def test_what_the_page_calls_accepted_is_correct(answer: str, reference: str, why: str) -> None:
    assert outcome(answer, reference) is Outcome.CORRECT, why


@pytest.mark.parametrize(("answer", "reference", "why"), rows("Refused"))
def test_what_the_page_calls_refused_is_not_correct(answer: str, reference: str, why: str) -> None:
    assert outcome(answer, reference) in (Outcome.WRONG, Outcome.UNPARSABLE), why


@pytest.mark.parametrize(("answer", "reference", "verdict"), rows("Policy choices") + rows("Limits"))
def test_every_policy_choice_and_limit_is_what_the_page_says(answer: str, reference: str, verdict: str) -> None:
    assert outcome(answer, reference) == verdict.split(" ")[0], verdict


def test_the_page_has_its_examples() -> None:
    sections = ("Accepted", "Refused", "Policy choices", "Limits")
    assert [len(rows(section)) for section in sections] == [16, 23, 12, 17]
