"""The length verifier, against the papers' equations written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.rules.length import cosine, ngrams, soft_overlong

SOFT = {"kind": "soft_overlong", "maximum": 100, "cache": 20}
COSINE = {"kind": "cosine", "maximum": 100, "start": 1.0, "end": 0.5}
TABLE: list[tuple[str, Any, dict[str, Any], float | None]] = [
    ("a " * 80, None, SOFT, 1.0),
    ("a " * 90, None, SOFT, 0.5),
    ("a " * 100, None, SOFT, 0.0),
    ("a " * 500, None, SOFT, 0.0),
    ("a " * 500, {"length": 85}, SOFT, 0.75),
    ("a" * 90, None, {**SOFT, "unit": "characters"}, 0.5),
    ("a " * 100, None, {**SOFT, "cache": 0}, 1.0),
    ("a " * 101, None, {**SOFT, "cache": 0}, 0.0),
    ("", None, COSINE, 1.0),
    ("a " * 50, None, COSINE, 0.75),
    ("a " * 100, None, COSINE, 0.5),
    ("a " * 101, None, COSINE, 0.0),
    ("a " * 101, None, {**COSINE, "exceeded": 0.1}, 0.1),
    ("a b c d", None, {"kind": "repetition", "n": 2}, 1.0),
    ("a b a b a", None, {"kind": "repetition", "n": 2}, 0.5),
    ("a", None, {"kind": "repetition", "n": 2}, 1.0),
    ("a", {"length": -1}, SOFT, None),
    ("a", {"length": "1"}, SOFT, None),
    ("a", {"length": True}, SOFT, None),
]


@pytest.mark.parametrize(("answer", "reference", "options", "score"), TABLE)
def test_the_table(answer: str, reference: Any, options: dict[str, Any], score: float | None) -> None:
    [verdict] = verify_sync("length", [Item(answer, reference)], options)
    assert verdict.score == pytest.approx(score)


@given(st.integers(1, 500), st.data())
def test_the_soft_overlong_punishment_is_equation_13_of_dapo(maximum: int, data: st.DataObject) -> None:
    cache = data.draw(st.integers(1, maximum))
    length = data.draw(st.integers(0, 2 * maximum))
    if length <= maximum - cache:
        expected = 0.0
    elif length <= maximum:
        expected = ((maximum - cache) - length) / cache
    else:
        expected = -1.0
    assert soft_overlong(length, maximum, cache) == pytest.approx(expected)
    assert soft_overlong(length, maximum, cache) >= soft_overlong(length + 1, maximum, cache)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.data())
def test_the_cosine_schedule_is_the_papers_and_stays_between_its_ends(
    maximum: int, start: float, end: float, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, maximum))
    value = cosine(length, maximum, start, end)
    assert min(start, end) <= value <= max(start, end)
    # CosFn(t, T, eta_min, eta_max), from eta_max at 0 to eta_min at T
    assert value == pytest.approx(end + 0.5 * (start - end) * (1 + math.cos(length * math.pi / maximum)))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_saying_it_all_again_never_makes_an_answer_less_repetitive(words: list[str], n: int) -> None:
    distinct, total = ngrams(words, n)
    assert 0 <= distinct <= total
    again, total_again = ngrams(words + words, n)
    if total:
        assert again / total_again <= 1.0
        assert again <= distinct + n - 1  # new ones only across the seam


def test_a_cache_beyond_the_maximum_is_refused() -> None:
    with pytest.raises(QuintainError, match=r"cache is at most maximum \(10\)"):
        get_verifier("length", maximum=10, cache=11)
