"""Whether two equations, or two inequalities, in the same variables say the same.

They do where the difference of one's sides is a constant multiple of the other's (for an inequality the constant's
sign decides about its direction), and two equations also where both are linear in a variable and have the same
solution for it at all points tried: x y = 1 is y = 1/x.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from typing import Any, Final

import mpmath

from quintain.verifiers.math.compare.equality import FIRST_DIGITS, POINTS, TRIALS, points, renamed
from quintain.verifiers.math.compare.evaluate import Approximation
from quintain.verifiers.math.read.exact import Undefined, exact
from quintain.verifiers.math.read.tree import Node, Undecided, symbols

FLIPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
"""What a relation is when its sides change places, or its signs."""


def same_zeros(one: Node, other: Node, op: str, expected: str, *, rename: bool) -> bool:
    """Whether `one op 0` says the same as `other expected 0`; with `rename`, in whatever variables."""
    names = symbols(other)
    same_names = [one] if symbols(one) == names else renamed(one, names) if rename else []
    for candidate in same_names if names else []:
        factor = proportional(candidate, other)
        if factor is not None:
            if op in ("=", "!=", "~") or op == (expected if factor > 0 else FLIPPED[expected]):
                return True
        elif op in ("=", "~") and same_solution(candidate, other):
            return True
    return False


def same_solution(one: Node, other: Node) -> bool:
    """Whether two equations have the same solution for each variable in which both are linear; there must be one.

    One variable alone would not do: a x = 2 a and a x = 3 a have the same solution for a.
    """
    names, solved = symbols(one), 0
    for name in sorted(names):
        agreed = 0
        for values, _ in islice(points(one, other, names - {name}), TRIALS):
            first, second = linear_solution(one, name, values), linear_solution(other, name, values)
            if first is None or second is None:
                continue
            if first != second:
                return False
            agreed += 1
        solved += agreed >= POINTS
    return solved > 0


def proportional(one: Node, other: Node) -> Fraction | None:
    """The constant c with one = c·other at all points, by its first eight digits; None where there is none.

    What makes 6x + 4y - 10 = 0 the equation 3x + 2y - 5 = 0, and -x > -1 the inequality x < 1.
    """
    names = symbols(one) | symbols(other)
    found: list[Any] = []
    for values, complex_numbers in points(one, other, names or frozenset({"x"})):
        try:
            above = Approximation(FIRST_DIGITS, values, complex_numbers).of(one)
            below = Approximation(FIRST_DIGITS, values, complex_numbers).of(other)
        except Undefined:
            continue
        with mpmath.workdps(FIRST_DIGITS):
            if abs(above) < 1e-30 or abs(below) < 1e-30:
                if abs(above) > 1e-20 or abs(below) > 1e-20:
                    return None
                continue
            found.append(above / below)
            if abs(found[-1] - found[0]) > abs(found[0]) * mpmath.mpf(10) ** -25:
                return None
        if len(found) == POINTS:
            break
    if len(found) < POINTS // 2 or mpmath.im(found[0]):
        return None
    return Fraction(str(mpmath.nstr(mpmath.re(found[0]), 8, min_fixed=1, max_fixed=0)))


def linear_solution(node: Node, name: str, values: dict[str, Fraction]) -> Fraction | None:
    """What solves node = 0 for `name`, given rational values of the others, where `node` is linear in it there."""
    try:
        sampled = [exact(node, {**values, name: Fraction(point)}) for point in (1, 2, 3, 7)]
    except (Undefined, Undecided):
        return None
    first, second, third, seventh = sampled
    if first is None or second is None or third is None or seventh is None:
        return None
    slope = second - first
    if slope == 0 or third - second != slope or seventh - third != 4 * slope:
        return None
    return 1 - first / slope
