"""The token F1 verifier, against values worked out by hand and a second way to compute them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers import Item, verify_sync
from quintain.verifiers.rules.token_f1 import normal_words, token_f1

TABLE: list[tuple[str, Any, dict[str, Any], float | None]] = [
    ("the cat sat", "The cat sat.", {}, 1.0),
    ("cat", "the cat sat", {}, 2 / 3),  # p = 1, r = 1/2
    ("a big cat sat down", "cat sat", {}, 2 * 0.5 * 1 / 1.5),
    ("cat cat cat", "cat", {}, 0.5),  # a word counts as often as both have it
    ("dog", "cat", {}, 0.0),
    ("dog", ["cat", "the dog"], {}, 1.0),
    ("U.S.A.", "usa", {}, 1.0),
    ("the", "an", {}, 1.0),  # no words left on either side
    ("the", "cat", {}, 0.0),
    ("cat sat", "the cat sat", {"metric": "exact_match"}, 1.0),
    ("cat", "the cat sat", {"metric": "exact_match"}, 0.0),
    ("<think>no cat</think>dog", "dog", {}, 1.0),
    ("", "cat", {}, 0.0),
    ("cat", "", {}, None),
    ("cat", 5, {}, None),
]


@pytest.mark.parametrize(("answer", "reference", "options", "score"), TABLE)
def test_the_table(answer: str, reference: Any, options: dict[str, Any], score: float | None) -> None:
    [verdict] = verify_sync("token_f1", [Item(answer, reference)], options)
    assert verdict.score == pytest.approx(score)


def test_an_answer_without_words_is_unparsable_and_a_partial_one_partial() -> None:
    outcomes = [v.outcome for v in verify_sync("token_f1", [Item(" ", "cat"), Item("cat", "cat sat")])]
    assert outcomes == [Outcome.UNPARSABLE, Outcome.PARTIAL]


WORDS = st.lists(st.sampled_from(["the", "a", "cat", "dog", "sat", "mat", "Cat.", "u.s"]), max_size=8).map(" ".join)


@given(WORDS, WORDS)
def test_the_score_is_the_harmonic_mean_of_precision_and_recall(answer: str, reference: str) -> None:
    one, other = normal_words(answer), normal_words(reference)
    score = token_f1(one, other)
    assert score == token_f1(other, one)
    left = list(other)
    common = 0
    for word in one:
        if word in left:
            left.remove(word)
            common += 1
    if common:
        precision, recall = common / len(one), common / len(other)
        assert score == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert score == float(not one and not other)
