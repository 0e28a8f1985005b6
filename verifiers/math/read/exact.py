"""The exact values of trees that are rational by their form. Fractions only: no import beyond the standard library.

What always holds: the value is exact or there is none, and what would take too much memory or time is `Undecided`
before it is computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from quintain.verifiers.math.read.grammar import parse
from quintain.verifiers.math.read.tree import Node, Op, Undecided, Unreadable

MAX_EXACT_BITS: Final = 400_000
"""Integers of more bits are not written out."""
MAX_FACTORIAL: Final = 20_000
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
MAX_SIDES: Final = 50
"""A chain of more equalities is not followed step by step."""

Environment = Mapping[str, Fraction]
NOTHING: Final[Environment] = {}
_EQUALS = re.compile(r"(?<![\\<>!:])=")
ARITHMETIC = re.compile(r"(?=\D*\d)(?:[\d\s.,+\-*/^()%{}]|\\times|\\cdot|\\div|\\frac|\\left|\\right)+", re.ASCII)


class Undefined(Exception):
    """The expression has no value there: a division by zero, or a real function outside its domain."""


def is_true(text: str) -> bool | None:
    """Whether a chain of equalities between plain arithmetic holds at every step; None where `text` is no such."""
    sides = _EQUALS.split(text)
    if not 2 <= len(sides) <= MAX_SIDES or any(ARITHMETIC.fullmatch(side) is None for side in sides):
        return None
    try:
        values = {exact(parse(_THOUSANDS.sub("", side))) for side in sides}
    except Undefined:
        return False
    except (Undecided, Unreadable):
        return None
    return None if None in values else len(values) == 1


def exact(node: Node, values: Environment = NOTHING) -> Fraction | None:
    """The rational value of `node`, or None where it is not rational by its form.

    Raises `Undefined` for a division by zero, `Undecided` for a value of more than `MAX_EXACT_BITS`.
    """
    args: list[Fraction] = []
    if node.op is Op.NUMBER:
        assert isinstance(node.value, Fraction)
        return node.value
    if node.op is Op.SYMBOL:
        return values.get(str(node.value))
    if node.op in (Op.CONSTANT, Op.APPLY, Op.EITHER, Op.MATRIX, Op.ROW):
        return None
    for arg in node.args:
        value = exact(arg, values)
        if value is None:
            return None
        args.append(value)
    match node.op:
        case Op.ADD:
            return _bounded(sum(args, Fraction(0)))
        case Op.NEG:
            return -args[0]
        case Op.MUL:
            product = Fraction(1)
            for factor in args:
                product = _bounded(product * factor)
            return product
        case Op.DIV:
            if args[1] == 0:
                raise Undefined("a division by zero")
            return _bounded(args[0] / args[1])
        case Op.POW:
            return _power(*args)
        case Op.ROOT:
            return _root(*args)
        case Op.CALL:
            return _exact_call(str(node.value), args)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 2 * MAX_EXACT_BITS:
        raise Undecided("a number too long to be computed exactly")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _root(base, Fraction(exponent.denominator))
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if base == 0:
        if exponent < 0:
            raise Undefined("a division by zero")
        return Fraction(int(exponent == 0))
    if abs(base) == 1:
        return base if exponent.numerator % 2 else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent.numerator) * bits > MAX_EXACT_BITS:
        raise Undecided("a power too large to be computed exactly")
    return base**exponent.numerator


def _root(radicand: Fraction, index: Fraction) -> Fraction | None:
    """The rational root, where there is one."""
    if index.denominator != 1 or not 2 <= index.numerator <= 1000 or radicand < 0:
        return None
    top = _integer_root(radicand.numerator, index.numerator)
    bottom = _integer_root(radicand.denominator, index.numerator)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(value: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    if value < 2:
        return value
    low, high = 1, 1 << (value.bit_length() // index + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**index <= value:
            low = middle
        else:
            high = middle - 1
    return low if low**index == value else None


def _exact_call(name: str, args: list[Fraction]) -> Fraction | None:
    if name == "abs" and len(args) == 1:
        return abs(args[0])
    if name in ("floor", "ceil") and len(args) == 1:
        return Fraction(math.floor(args[0]) if name == "floor" else math.ceil(args[0]))
    if name in ("max", "min") and args:
        return max(args) if name == "max" else min(args)
    if any(arg.denominator != 1 for arg in args):
        return None
    whole = [int(arg) for arg in args]
    if (name, len(whole)) in (("factorial", 1), ("binom", 2)) and min(whole) >= 0:
        if whole[0] > MAX_FACTORIAL:
            raise Undecided(f"a {name} too large to be computed exactly")
        return Fraction(math.comb(*whole) if name == "binom" else math.factorial(*whole))
    if name in ("gcd", "lcm") and whole:
        return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))
    return None
