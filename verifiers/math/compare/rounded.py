"""What stands behind an `\\approx`: a decimal for people, which says no more than the exact value before it.

`14/3 \\approx 5` would otherwise be two answers, 14/3 and 5, and right beside either.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from quintain.verifiers.math.compare.equality import real_value
from quintain.verifiers.math.read.shapes import Shape, Value
from quintain.verifiers.math.read.tree import has_decimals

LEAST_PLACES: Final = 2
"""A decimal of fewer places is too rough to stand for the number that it rounds."""
NEAR: Final = Fraction(1, 20)
"""What is not written as a plain decimal is near where it is within this share of the exact value."""

_DECIMAL = re.compile(r"-?\d+(?:\.(\d+))?")


def is_near(approximate: Shape, exact: Shape) -> bool:
    """Whether `approximate` is `exact`, rounded or cut off at its last place."""
    values = _values(approximate, exact)
    if values is None:
        return False
    one, other = values
    places = _places(approximate)
    return abs(one - other) < (NEAR * abs(other) if places is None else Fraction(1, 10**places))


def stands_for(approximate: Shape, exact: Shape) -> bool:
    """Whether `approximate` is a decimal that correctly rounds `exact`, which is no decimal itself."""
    values, places = _values(approximate, exact), _places(approximate)
    if values is None or places is None or places < LEAST_PLACES:
        return False
    if isinstance(exact, Value) and exact.tree is not None and has_decimals(exact.tree):
        return False
    return bool(abs(values[0] - values[1]) * 2 * 10**places <= 1)


def _places(shape: Shape) -> int | None:
    """How many decimal places a plain decimal has."""
    found = _DECIMAL.fullmatch(shape.text.replace(",", "")) if isinstance(shape, Value) else None
    return len(found[1] or "") if found else None


def _values(*shapes: Shape) -> list[Fraction] | None:
    """The real values of numbers; None where one of them has none."""
    trees = [shape.tree for shape in shapes if isinstance(shape, Value) and shape.tree is not None]
    values = [value for value in map(real_value, trees) if value is not None]
    return values if len(values) == len(shapes) else None
