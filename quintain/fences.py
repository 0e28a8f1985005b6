"""Fenced blocks in a model's text, as CommonMark writes them. Pure, linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def has_fence(text: str) -> bool:
    """Whether a line of `text` is a fence."""
    return _FENCE.search(text) is not None


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """The complete blocks of `text` in order: what stands behind the opening fence, and what is in the block.

    A fence is a line that begins with three or more backticks or tildes. A block ends at a fence of the same kind, at
    least as long, with nothing behind it; one that never ends is none.
    """
    opened = None
    for fence in _FENCE.finditer(text):
        marks, info = fence[1], fence[2].strip()
        if opened is None:
            if marks[0] == "~" or "`" not in info:  # ```like this``` is code within a line
                opened = fence
        elif marks[0] == opened[1][0] and len(marks) >= len(opened[1]) and not info:
            yield opened[2].strip(), text[opened.end() + 1 : fence.start()]
            opened = None


def last_fence(text: str, languages: frozenset[str]) -> str | None:
    """What is in the last fenced block of `text` whose language is one of `languages` ("" is no language), or None."""
    found = None
    for info, body in fenced_blocks(text):
        if (info.split() or [""])[0].lower() in languages:
            found = body
    return found
