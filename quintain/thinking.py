"""What a model says once it has thought, however it marks its thinking. Pure, linear in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

Marks = Sequence[tuple[str, str]]
"""Pairs of texts between which a model thinks, beyond those that are known."""

_THOUGHT: Final = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)(?:[_-][\w-]{1,24})?"
_THINKING_ENDS: Final = (
    rf"[<＜]\|?\s?/\s?(?:[\w.-]{{1,24}}[:_])?{_THOUGHT}\s?\|?[>＞]|\[/THINK\]|◁/think▷|<unused95>|<channel\|>"
    rf"|<\|(?:end|end_of|stop)_?{_THOUGHT}\|>|<\|channel\|>final<\|message\|>|<\|inner_suffix\|>"
)
_THINKING_BEGINS: Final = (
    rf"[<＜]\|?\s?(?:[\w.-]{{1,24}}[:_])?{_THOUGHT}(?:\s[^<>\n]{{0,200}})?\|?[>＞]|\[THINK\]|◁think▷|<unused94>|<\|channel>thought"
    rf"|<\|(?:begin|begin_of|start|start_of)_?{_THOUGHT}\|>|<\|channel\|>analysis<\|message\|>|<\|inner_prefix\|>"
)


def text_after_thinking(text: str, marks: Marks = ()) -> str | None:
    """What follows the thinking, or None where the thinking never ended."""
    begins, ends = (
        re.compile("|".join((known, *(re.escape(pair[side]) for pair in marks))), re.IGNORECASE)
        for side, known in enumerate((_THINKING_BEGINS, _THINKING_ENDS))
    )
    end = 0
    for mark in ends.finditer(text):
        end = mark.end()
    return None if begins.search(text, end) else text[end:]
