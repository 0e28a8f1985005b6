"""Whether two results of queries are the same. Pure.

What always holds:
- columns count and are compared by position; their names do not matter;
- rows are compared in order where the reference orders them at its top level, else as a multiset; rows that its
  ORDER BY leaves tied are a multiset among themselves;
- NULL is equal to NULL alone; a text is never equal to a number;
- whole numbers are equal exactly, 5 and 5.0 among them; where one has a fraction they may differ by the relative
  tolerance, or by 1e-12.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from quintain.verifiers.rules.tool_call.match import matching

Row = tuple[Any, ...]
ABSOLUTE_TOLERANCE: Final = 1e-12
MATCHED_ROWS: Final = 200
"""Up to so many rows that differ in nothing but fractions are matched with one another; beyond, in sorted order."""

_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)|[()]|\w+|.""", re.DOTALL
)


def end_of_order(query: str) -> int | None:
    """Where the ORDER BY of `query` ends; None where it has none outside of all parentheses, texts and comments."""
    depth, at, before, ordered = 0, 0, "", False
    for token in _TOKEN.findall(query):
        depth += (token == "(") - (token == ")")
        word = token.upper()
        if depth == 0 and not ordered and before == "ORDER" and word == "BY":
            ordered = True
        elif depth == 0 and ordered and (word == "LIMIT" or word.startswith("--")):
            return at
        before = before if token.isspace() or token.startswith(("--", "/*")) else word
        at += len(token)
    return len(query.rstrip().rstrip(";")) if ordered else None


def tied_orders(query: str, end: int, columns: int) -> list[str]:
    """The `query`, whose order ends at `end`, twice, with its tied rows in opposite orders."""
    first, last = (", ".join(f"{column + 1} {way}" for column in range(columns)) for way in ("ASC", "DESC"))
    return [f"{query[:end]}, {more} {query[end:]}" for more in (first, last)]


def tied_rows(first: Sequence[Row], last: Sequence[Row]) -> list[int] | None:
    """Where each group of tied rows ends, given the rows with ties in opposite orders; None where they differ in more
    than the order of ties (a LIMIT cuts through one)."""
    ends: list[int] = []
    ahead, unmatched = Counter[Row](), 0
    for place, pair in enumerate(zip(first, last, strict=True), 1):
        for row, step in zip(pair, (1, -1), strict=True):
            unmatched -= ahead[row] != 0
            ahead[row] += step
            unmatched += ahead[row] != 0
        if not unmatched:
            ends.append(place)
    return ends if len(first) == (ends[-1] if ends else 0) else None


def same_rows(
    one: Sequence[Row], other: Sequence[Row], *, ends: Sequence[int] | None, relative_tolerance: float
) -> bool:
    """Whether two results are the same; `ends` is where each group of rows ends that may come in any order."""
    if len(one) != len(other):
        return False
    if ends is not None:
        spans = pairwise((0, *ends))
        return all(same_rows(one[a:b], other[a:b], ends=None, relative_tolerance=relative_tolerance) for a, b in spans)
    width = len(one[0]) if one else 0
    loose = [any(isinstance(row[column], float) for row in (*one, *other)) for column in range(width)]
    groups, others = _grouped(one, loose), _grouped(other, loose)
    return groups.keys() == others.keys() and all(
        _same_group(groups[key], others[key], relative_tolerance) for key in groups
    )


def _grouped(rows: Sequence[Row], loose: Sequence[bool]) -> dict[tuple[Any, ...], list[Row]]:
    """`rows` by what is compared exactly: all but the numbers in columns that have fractions."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        key = tuple(
            (None,) if is_loose and isinstance(value, (int, float)) else (type(value).__name__, value)
            for value, is_loose in zip(row, loose, strict=True)
        )
        groups[key].append(row)
    return groups


def _same_group(one: list[Row], other: list[Row], relative_tolerance: float) -> bool:
    if len(one) != len(other):
        return False
    by_numbers = zip(sorted(one, key=_numbers), sorted(other, key=_numbers), strict=True)
    if all(_same_row(a, b, relative_tolerance) for a, b in by_numbers):
        return True
    if len(one) > MATCHED_ROWS:
        return False
    fits = [[_same_row(row, candidate, relative_tolerance) for candidate in other] for row in one]
    return matching(fits) == len(one)


def _numbers(row: Row) -> list[float]:
    return [value if isinstance(value, (int, float)) else 0 for value in row]


def _same_row(one: Row, other: Row, relative_tolerance: float) -> bool:
    return len(one) == len(other) and all(
        _same_value(*values, relative_tolerance) for values in zip(one, other, strict=True)
    )


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()


def _same_value(one: Any, other: Any, relative_tolerance: float) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        if one == other or (_is_whole(one) and _is_whole(other)):
            return one == other
        return math.isclose(one, other, rel_tol=relative_tolerance, abs_tol=ABSOLUTE_TOLERANCE)
    return type(one) is type(other) and bool(one == other)
