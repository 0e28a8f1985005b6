"""Cutting the text of an answer at what stands outside of all its brackets. Linear in the text.

LaTeX's environments and escaped braces are brackets too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{")
THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})+(?![\d])")
"""A number with commas between its thousands."""


def _scan(text: str) -> Iterator[tuple[int, int]]:
    """(place, depth) of every character outside of commands' names; a bracket that closes is outside of itself."""
    depth, place = 0, 0
    while place < len(text):
        char = text[place]
        if char == "\\":
            environment = _ENVIRONMENT.match(text, place)
            if environment is not None:
                depth += 1 if environment[1] == "begin" else -1
                place = environment.end() - 1
                continue
            escaped = text[place + 1 : place + 2]
            depth += (escaped == "{") - (escaped == "}")
            yield place + (escaped in ("{", "}")), depth
            place += 2
            continue
        depth += (char in "([{") - (char in ")]}")
        yield place, depth
        place += 1


def split(text: str, separator: str, *, inside: bool) -> list[str]:
    """`text` split at the separators outside of all brackets; a comma in a number like 1,234 is none.

    Within brackets `1,234` is two numbers, unless another comma of theirs has a blank behind it.
    """
    if separator not in text:
        return [text]
    kept: set[int] = set()
    if separator == "," and (not inside or re.search(r",\s", text)):
        for found in THOUSANDS.finditer(text):
            kept.update(range(found.start(), found.end()))
    cuts = [place for place, depth in _scan(text) if depth == 0 and text[place] == separator and place not in kept]
    edges = [-1, *cuts, len(text)]
    return [text[start + 1 : end] for start, end in pairwise(edges)]


def split_at(text: str, pattern: re.Pattern[str]) -> list[str]:
    """`text` split at the matches of `pattern` outside of all brackets: text, match, text, …"""
    if pattern.search(text) is None:
        return [text]
    top = {place for place, depth in _scan(text) if depth == 0}
    pieces, last = [], 0
    for found in pattern.finditer(text):
        start = found.start() + len(found[0]) - len(found[0].lstrip())
        if start in top:
            pieces += [text[last : found.start()], found[0].strip()]
            last = found.end()
    return [*pieces, text[last:]]


def closes_early(text: str) -> bool:
    """Whether the bracket that begins `text` closes before its end."""
    return next((place for place, depth in _scan(text) if depth == 0), 0) < len(text) - 1
