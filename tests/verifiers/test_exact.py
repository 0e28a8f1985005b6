"""The exact verifier."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers import Item, verify_sync
from quintain.verifiers.rules.exact import ExactOptions, ExactVerifier

TABLE: list[tuple[str, Any, dict[str, Any], Outcome]] = [
    ("Paris", "Paris", {}, Outcome.CORRECT),
    ("  Paris\n", "Paris", {}, Outcome.CORRECT),
    ("paris", "Paris", {}, Outcome.WRONG),
    ("paris", "Paris", {"case_sensitive": False}, Outcome.CORRECT),
    ("STRASSE", "straße", {"case_sensitive": False}, Outcome.CORRECT),
    ("a  b\nc", "a b c", {}, Outcome.WRONG),
    ("a  b\nc", "a b c", {"collapse_whitespace": True}, Outcome.CORRECT),
    ("１２", "12", {}, Outcome.WRONG),
    ("１２", "12", {"nfkc": True}, Outcome.CORRECT),
    ("Rome", ["Paris", "Rome"], {}, Outcome.CORRECT),
    ("Oslo", ["Paris", "Rome"], {}, Outcome.WRONG),
    ("<think>Rome? No.</think>Paris", "Paris", {}, Outcome.CORRECT),
    ("<think>Paris", "Paris", {}, Outcome.UNPARSABLE),
    ("<think>x</think>Paris", "Paris", {"after_thinking": False}, Outcome.WRONG),
    ("It is <answer>Rome</answer> or <answer> Paris </answer>.", "Paris", {"tag": "answer"}, Outcome.CORRECT),
    ("Paris", "Paris", {"tag": "answer"}, Outcome.UNPARSABLE),
    ("<answer>Paris", "Paris", {"tag": "answer"}, Outcome.UNPARSABLE),
    ("", "Paris", {}, Outcome.UNPARSABLE),
    ("Paris", "", {}, Outcome.BAD_REFERENCE),
    ("Paris", [], {}, Outcome.BAD_REFERENCE),
    ("Paris", ["Paris", 5], {}, Outcome.BAD_REFERENCE),
    ("5", 5, {}, Outcome.BAD_REFERENCE),
]


@pytest.mark.parametrize(("answer", "reference", "options", "outcome"), TABLE)
def test_the_table(answer: str, reference: Any, options: dict[str, Any], outcome: Outcome) -> None:
    [verdict] = verify_sync("exact", [Item(answer, reference)], options)
    assert verdict.outcome is outcome


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_an_answer_is_correct_exactly_where_it_equals_the_reference_but_for_white_space(
    answer: str, reference: str
) -> None:
    verdict = ExactVerifier(ExactOptions(after_thinking=False)).judge(answer, reference)
    if reference.strip() and answer.strip():
        assert (verdict.score == 1.0) == (answer.strip() == reference.strip())
    else:
        assert verdict.score in (0.0, None)
