"""Whether two sets of real numbers are the same: by what is in them, at all points where that could change.

A set here is built from intervals, finite sets and relations in one variable whose two sides are piecewise linear
in it with their only kink at 0 (so `|z| \\le 3` is among them). Its breakpoints are known exactly or to 50 digits;
two sets are the same where they agree at every breakpoint of both, between each two, and beyond the last.
Everything else is `Unreadable`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Final

from quintain.verifiers.math.compare.equality import infinite, real_value
from quintain.verifiers.math.read.exact import Undefined, exact
from quintain.verifiers.math.read.shapes import Combined, Relation, Shape, ShapeGroup, Span, Value
from quintain.verifiers.math.read.tree import Node, Op, Undecided, Unreadable, symbol, symbols

End = Fraction | float
"""A float only for plus and minus infinity, which fractions compare with."""
SAME_DIGITS: Final = 40
"""Breakpoints that agree to so many digits are one."""


def variable(relation: Relation) -> str | None:
    """The one variable of `relation`, or None; f(x) is one where no x is beside it."""
    names: set[str] = set()
    for side in relation.sides:
        if not isinstance(side, Value) or side.tree is None:
            return None
        names |= symbols(_opaque(side.tree))
    return names.pop() if len(names) == 1 else None


def _opaque(tree: Node) -> Node:
    """`tree` with the values of unknown functions as variables."""
    if tree.op is Op.APPLY:
        return symbol(repr(tree))
    return replace(tree, args=tuple(map(_opaque, tree.args))) if tree.args else tree


def same(one: Shape, other: Shape) -> bool:
    """Whether two shapes are the same set of real numbers."""
    cuts = _merged(sorted([*_breakpoints(one), *_breakpoints(other)]))
    if not cuts:
        cuts = [Fraction(0)]
    between = [(low + high) / 2 for low, high in pairwise(cuts)]
    probes = [cuts[0] - 1, *cuts, *between, cuts[-1] + 1]
    return all(_contains(one, probe) == _contains(other, probe) for probe in probes)


def _merged(points: list[Fraction]) -> list[Fraction]:
    merged: list[Fraction] = []
    for point in points:
        if not merged or not _close(merged[-1], point):
            merged.append(point)
    return merged


def _close(one: Fraction, other: Fraction) -> bool:
    return bool(abs(one - other) <= max(Fraction(1), abs(one)) / 10**SAME_DIGITS)


def _end(shape: Shape) -> End:
    """The value of an end of an interval, which may be infinite."""
    if not isinstance(shape, Value) or shape.tree is None or shape.unit is not None:
        raise Unreadable("an end of an interval is a number")
    infinity = infinite(shape.tree)
    return _real(shape.tree) if infinity is None else infinity * math.inf


def _real(tree: Node) -> Fraction:
    if symbols(tree):
        raise Unreadable("an end of an interval has a variable")
    known = exact(tree)
    if known is not None:
        return known
    value = real_value(tree)
    if value is None:
        raise Unreadable("an end of an interval is a real number")
    return value


def _breakpoints(shape: Shape) -> Iterator[Fraction]:
    if isinstance(shape, Span):
        yield from (end for end in (_end(shape.low), _end(shape.high)) if isinstance(end, Fraction))
    elif isinstance(shape, Combined):
        for part in shape.parts:
            yield from _breakpoints(part)
    elif isinstance(shape, ShapeGroup):
        if shape.kind == "tuple" and len(shape.items) == 2:  # the open interval
            low, high = map(_end, shape.items)
            if low >= high or (isinstance(high, Fraction) and _is_at(low, high)):
                raise Unreadable("a point, and no interval")
            yield from (end for end in (low, high) if isinstance(end, Fraction))
        elif shape.kind == "list" and not all(isinstance(item, Value) for item in shape.items):
            raise Unreadable("a list of sets is no set of real numbers")
        elif shape.kind != "tuple":
            for item in shape.items:
                if isinstance(item, Value):
                    end = _end(item)
                    if not isinstance(end, Fraction):
                        raise Unreadable("infinity is no element")
                    yield end
                else:
                    yield from _breakpoints(item)
        else:
            raise Unreadable("a tuple is no set of real numbers")
    elif isinstance(shape, Relation):
        yield from _crossings(shape)
    else:
        raise Unreadable("no set of real numbers")


def _crossings(relation: Relation) -> Iterator[Fraction]:
    """Where two neighbouring sides of a relation are equal, and 0, where |x| has its kink."""
    name = variable(relation)
    if name is None or "in" in relation.ops or "~" in relation.ops:
        raise Unreadable("a relation in one variable is needed")
    yield Fraction(0)
    for left, right in pairwise(relation.sides):
        assert isinstance(left, Value)
        assert isinstance(right, Value)
        for sign in (1, -1):
            heights = []
            for step in (1, 2, 3, 7, 50):
                one, other = (_side(side, name, Fraction(sign * step)) for side in (left, right))
                heights.append(one - other)
            slope = heights[1] - heights[0]
            expected = [heights[0] + slope * (step - 1) for step in (1, 2, 3, 7, 50)]
            if any(not _close(*pair) for pair in zip(heights, expected, strict=True)):
                raise Unreadable("a relation that is not linear")
            if slope:
                root = sign * (1 - heights[0] / slope)
                if root * sign > 0:
                    yield root


def _side(side: Value, name: str, at: Fraction) -> Fraction:
    assert side.tree is not None
    try:
        known = exact(_opaque(side.tree), {name: at})
    except Undefined:
        raise Unreadable("a side of a relation is undefined") from None
    if known is not None:
        return known
    if symbols(side.tree):
        raise Unreadable("a side of a relation is no rational function")
    return _real(side.tree)


def _contains(shape: Shape, probe: Fraction) -> bool:
    if isinstance(shape, Span):
        return _between(_end(shape.low), _end(shape.high), shape.low_open, shape.high_open, probe)
    if isinstance(shape, ShapeGroup) and shape.kind == "tuple":
        low, high = map(_end, shape.items)
        return _between(low, high, True, True, probe)
    if isinstance(shape, ShapeGroup):
        return any(
            _is_at(_end(item), probe) if isinstance(item, Value) else _contains(item, probe) for item in shape.items
        )
    if isinstance(shape, Combined):
        inside = [_contains(part, probe) for part in shape.parts]
        if shape.op == "cup":
            return any(inside)
        return all(inside) if shape.op == "cap" else inside[0] and not any(inside[1:])
    if isinstance(shape, Relation):
        name = variable(shape)
        assert name is not None
        heights = [_side(side, name, probe) for side in shape.sides if isinstance(side, Value)]
        return all(_holds(op, *pair) for op, pair in zip(shape.ops, pairwise(heights), strict=True))
    raise Undecided("no set of real numbers")


def _between(low: End, high: End, low_open: bool, high_open: bool, probe: Fraction) -> bool:
    above = not low_open if _is_at(low, probe) else low < probe
    below = not high_open if _is_at(high, probe) else probe < high
    return above and below


def _is_at(end: End, probe: Fraction) -> bool:
    return isinstance(end, Fraction) and _close(end, probe)


def _holds(op: str, left: Fraction, right: Fraction) -> bool:
    if _close(left, right):
        return op in ("<=", ">=", "=")
    if op in ("<", "<="):
        return left < right
    if op in (">", ">="):
        return left > right
    return op == "!="
