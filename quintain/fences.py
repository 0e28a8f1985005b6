"""Fenced blocks in a model's text, as CommonMark writes them, and models. Pure, linear in the text.

What always holds: only complete blocks are found; a block ends at a fence of the same kind, at least as long, at most
three columns deeper, with nothing behind it. Beyond CommonMark, as models write: a fence may be indented (in a list),
and its block is then freed of that indentation; a fence with a language begins a block even where a bare one is open;
and where the very first fence is one that only ends, what stands before it was a block (the prompt had begun it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

DEEPER_COLUMNS: Final = 3
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def has_fence(text: str) -> bool:
    """Whether a line of `text` is a fence."""
    return _FENCE.search(text) is not None


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """The complete blocks of `text` in order: what stands behind the opening fence, and what is in the block.

    A fence is a line that begins with three or more backticks or tildes.
    """
    opened: re.Match[str] | None = None
    first = True
    for fence in _FENCE.finditer(text):
        indent, marks, info = fence[1], fence[2], fence[3].strip()
        if opened is None:
            if marks[0] == "~" or "`" not in info:  # ```like this``` is code within a line
                opened = fence
        elif marks[0] != opened[2][0] or len(indent) > len(opened[1]) + DEEPER_COLUMNS or "`" in info:
            continue
        elif info and not opened[3].strip():
            if first and text[: opened.start()].strip():
                yield "", text[: opened.start()]
            opened, first = fence, False
        elif not info and len(marks) >= len(opened[2]):
            yield opened[3].strip(), _dedented(text[opened.end() + 1 : fence.start()], len(opened[1]))
            opened, first = None, False
    if first and opened is not None and not opened[3].strip() and text[: opened.start()].strip():
        yield "", text[: opened.start()]


def last_fence(text: str, languages: frozenset[str]) -> str | None:
    """What is in the last fenced block of `text` whose language is one of `languages` ("" is no language), or None."""
    found = None
    for info, body in fenced_blocks(text):
        if (info.split() or [""])[0].lower() in languages:
            found = body
    return found


def _dedented(text: str, columns: int) -> str:
    return re.sub(rf"^[ \t]{{1,{columns}}}", "", text, flags=re.MULTILINE) if columns else text
