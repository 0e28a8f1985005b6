"""What follows a model's thinking, however it marks it."""

from __future__ import annotations

import pytest

from quintain.thinking import text_after_thinking
from quintain.verifiers import Item, verify_sync

from ..growth import growth

MARKS = [
    ("<think>", "</think>"),
    ('<think type="x">', "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought", "<unused95>"),
    ("<thinking>", "</thinking>"),
    ("<think_on>", "</think_on>"),
    ("<thinking_process>", "</thinking_process>"),
    ("＜think＞", "＜/think＞"),
]


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_only_what_follows_the_thinking_is_the_answer(begin: str, end: str) -> None:
    assert text_after_thinking(f"{begin}B, or A?{end}A") == "A"
    assert text_after_thinking(f"{begin}B, or A?") is None
    assert text_after_thinking(f"A{end}B{begin}C") is None


def test_other_marks_can_be_named_for_every_verifier() -> None:
    items = [Item("<plan>B</plan>A", "A"), Item("<plan>A", "A")]
    for name in ("multiple_choice", "exact", "math"):
        scores = [verdict.score for verdict in verify_sync(name, items, {"thinking": [["<plan>", "</plan>"]]})]
        assert scores == [1.0, 0.0]


def test_words_that_merely_mention_thinking_are_an_answer() -> None:
    assert text_after_thinking("I think <b>A</b> is a thought.") == "I think <b>A</b> is a thought."


@pytest.mark.parametrize("piece", ["<think></think>", "<think>", "</think>", "<think ", "<|", "\n"])
def test_long_thoughts_are_read_in_a_moment(piece: str) -> None:
    # Linear time grows 16-fold here, quadratic time 256-fold.
    short = piece * (25_000 // len(piece))
    assert growth(text_after_thinking, short, short * 16) < 100
