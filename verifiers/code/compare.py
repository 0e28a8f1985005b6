"""Whether a program's output is the expected one. Pure; linear in the two.

Policies, from strict to lenient:
- `exact`: the same bytes;
- `lines`: white space at the ends of lines, and empty lines at the end, do not count (the rule of most judges);
- `numbers`: as `lines`, but within a line words are compared, and two words that are numbers may differ by
  `tolerance`, absolutely or relatively to the expected one; with tolerance 0 they are equal as decimals (the rule of
  LiveCodeBench);
- `tokens`: only the sequence of words counts.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final, Literal

Policy = Literal["exact", "lines", "numbers", "tokens"]

NUMBER: Final = re.compile(rb"[+-]?(?:\d{1,400}\.?\d{0,400}|\.\d{1,400})(?:[eE][+-]?\d{1,5})?")


def same(given: bytes, expected: bytes, policy: Policy, tolerance: float = 0.0) -> bool:
    """Whether `given` is as good as `expected`."""
    if given == expected:
        return True
    if policy == "exact":
        return False
    if policy == "tokens":
        return given.split() == expected.split()
    ours, theirs = lines(given), lines(expected)
    if policy == "lines" or len(ours) != len(theirs):
        return ours == theirs
    return all(same_words(one.split(), other.split(), tolerance) for one, other in zip(ours, theirs, strict=True))


def lines(text: bytes) -> list[bytes]:
    """The lines of `text` without what does not count."""
    found = [line.rstrip() for line in text.split(b"\n")]
    while found and not found[-1]:
        found.pop()
    return found


def same_words(given: list[bytes], expected: list[bytes], tolerance: float) -> bool:
    """Whether the words are the same, numbers within `tolerance`."""
    return len(given) == len(expected) and all(
        one == other or same_numbers(one, other, tolerance) for one, other in zip(given, expected, strict=True)
    )


def same_numbers(given: bytes, expected: bytes, tolerance: float) -> bool:
    """Whether both are finite numbers, and close enough."""
    if not (NUMBER.fullmatch(given) and NUMBER.fullmatch(expected)):
        return False
    if tolerance == 0:
        return Decimal(given.decode()) == Decimal(expected.decode())
    one, other = float(given), float(expected)
    return math.isfinite(one) and math.isfinite(other) and abs(one - other) <= tolerance * max(1.0, abs(other))
