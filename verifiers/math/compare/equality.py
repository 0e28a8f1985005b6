"""Whether two expressions are equal: by value where they have one, at random points where they have variables.

How two numbers are compared, first match wins:
1. both rational by their form: exactly, however long they are;
2. approximately, to 50 digits: what differs by more than their last 25 is different;
3. once more, to as many digits as the largest and the smallest number met on the way need, so that a term like
   10^-300 is not lost. Numbers too large for that are equal where their trees are, else `Undecided`.
A decimal, which may have been rounded, may also stand for what it rounds (`numbers.rounds_to`); an item's own
tolerances replace that rule.

Expressions with variables are equal where they agree at `POINTS` rational points drawn with a seed that depends
on both texts, so that nobody can aim at the points (J. T. Schwartz, 1980, for polynomials, which are evaluated
exactly). Points where one side is undefined in the real numbers do not count; where too few are left, the
complex numbers decide.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations
from typing import Any, Final

import mpmath

from quintain.verifiers.math.compare.evaluate import Approximation
from quintain.verifiers.math.read.exact import Undefined, exact
from quintain.verifiers.math.read.numbers import is_within, rounds_to
from quintain.verifiers.math.read.tree import (
    Node,
    Op,
    Undecided,
    Unreadable,
    has_decimals,
    mentions,
    number,
    substituted,
    symbols,
    walk,
)

FIRST_DIGITS: Final = 50
MAX_DIGITS: Final = 6_000
POINTS: Final = 8
"""So many points must agree; two different polynomials of degree d agree at one with a chance of d / 10^4."""
TRIALS: Final = 40
MAX_MAGNITUDE_BITS: Final = 2_000
RENAMED_VARIABLES: Final = 4
"""Beyond so many variables no renaming is looked for: there are n! of them."""


@dataclass(frozen=True, slots=True)
class Closeness:
    """How near an answer must be to the reference.

    `places`: the rule for rounded decimals. `rel_tol`, `abs_tol`: where one of them is given, a number is right
    within max(rel_tol·|reference|, abs_tol), and `places` says nothing. `rename`: f(x) is f(y).
    """

    places: int = 6
    rel_tol: Fraction | None = None
    abs_tol: Fraction | None = None
    rename: bool = False

    @property
    def tolerant(self) -> bool:
        """Whether the item has tolerances of its own."""
        return self.rel_tol is not None or self.abs_tol is not None

    def near(self, one: Fraction, other: Fraction, *, decimal: bool) -> bool:
        """Whether a number that differs from the reference `other` is near enough; `decimal`: one may be rounded."""
        if self.tolerant:
            return is_within(one, other, self.rel_tol, self.abs_tol)
        return decimal and rounds_to(one, other, self.places)


def equal(answer: Node, reference: Node, close: Closeness) -> bool:
    """Whether two expressions are equal. Raises `Undecided` or `Unreadable` where that cannot be known."""
    if answer == reference:
        return True
    one, other = matrix(answer), matrix(reference)
    if one is not None or other is not None:
        return one is not None and other is not None and _same_matrix(one, other, close)
    renamings = renamed(answer, symbols(reference)) if close.rename else []
    return any(_equal_scalars(one, reference, close) for one in renamings or [answer])


def renamed(node: Node, names: frozenset[str]) -> list[Node]:
    """`node` with its variables called `names` in every order; not where it has them, another number or too many."""
    own = symbols(node)
    if own == names or len(own) != len(names) or len(names) > RENAMED_VARIABLES:
        return []
    return [substituted(node, dict(zip(sorted(own), order, strict=True))) for order in permutations(sorted(names))]


def _equal_scalars(answer: Node, reference: Node, close: Closeness) -> bool:
    names = symbols(answer) | symbols(reference)
    try:
        return _compared(answer, reference, names, close)
    except Undecided:
        if folded(answer) == folded(reference):
            return True
        raise


def _compared(answer: Node, reference: Node, names: frozenset[str], close: Closeness) -> bool:
    if any(part.op is Op.CONSTANT and part.value == "inf" for node in (answer, reference) for part in walk(node)):
        return infinite(answer) is not None and infinite(answer) == infinite(reference)
    if not names:
        return _equal_numbers(answer, reference, close)
    counted = 0
    for values, complex_numbers in points(answer, reference, names):
        try:
            if not _same_value(answer, reference, close, values, complex_numbers):
                return False
        except Undefined:
            continue
        counted += 1
        if counted == POINTS:
            return True
    if counted >= POINTS // 2:
        return True
    raise Unreadable("the expressions are defined at too few points")


def _equal_numbers(answer: Node, reference: Node, close: Closeness) -> bool:
    for complex_numbers in (True,) if _complex(answer) or _complex(reference) else (False, True):
        try:
            return _same_value(answer, reference, close, {}, complex_numbers)
        except Undefined:
            continue
    return False  # 0/0 equals nothing


def real_value(node: Node) -> Fraction | None:
    """The value of a number, to 50 digits; None for what has none, is complex, or too large or small to be written."""
    try:
        value = Approximation(FIRST_DIGITS).of(node)
    except (Undefined, Undecided, Unreadable):
        return None
    if mpmath.im(value) or (value and abs(mpmath.mag(value)) > MAX_MAGNITUDE_BITS):
        return None
    return rational(value)


def folded(node: Node) -> Node:
    """`node` with what is rational in it worked out, as far as that is short enough."""
    value = _exactly(node, {})
    if value is not None:
        return number(value)
    return replace(node, args=tuple(map(folded, node.args))) if node.args else node


def has_value(node: Node) -> bool:
    """Whether `node` is defined anywhere. Raises `Undecided` where it is too large to be computed."""
    cells = matrix(node)
    if cells is not None:
        return all(has_value(cell) for row in cells for cell in row)
    if infinite(node) is not None:
        return True
    for values, complex_numbers in points(node, node, symbols(node)):
        try:
            if _exactly(node, values) is None:
                Approximation(FIRST_DIGITS, values, complex_numbers).of(node)
            return True
        except Undefined:
            continue
    return False


def _same_matrix(one: list[list[Node]], other: list[list[Node]], close: Closeness) -> bool:
    if (len(one), len(one[0])) != (len(other), len(other[0])):
        return False
    return all(
        equal(cell, expected, close)
        for rows in zip(one, other, strict=True)
        for cell, expected in zip(*rows, strict=True)
    )


def points(answer: Node, reference: Node, names: frozenset[str]) -> Iterator[tuple[dict[str, Fraction], bool]]:
    """Points to compare at: real ones in several ranges first, then the same in the complex numbers.

    Each with whether roots and logarithms are complex there.
    """
    seed = "|".join(sorted((repr(answer), repr(reference))))
    always_complex = _complex(answer) or _complex(reference)
    for complex_numbers in (True,) if always_complex else (False, True):
        draw = random.Random(seed)
        for trial in range(TRIALS):
            low, high = ((1, 3000), (-9000, -1), (1, 999), (3000, 60_000), (1, 9000))[trial % 5]
            values = {name: Fraction(draw.randint(low, high), 1009) for name in sorted(names)}
            if trial % 5 == 4:  # signs that differ: xy is not |xy|
                values = {
                    name: value if (place + trial // 5) % 2 else -value
                    for place, (name, value) in enumerate(values.items())
                }
            yield values, complex_numbers


def _same_value(
    answer: Node, reference: Node, close: Closeness, values: dict[str, Fraction], complex_numbers: bool
) -> bool:
    one, other = _exactly(answer, values), _exactly(reference, values)
    decimal = has_decimals(answer) or has_decimals(reference)
    if one is not None and other is not None:
        return one == other or close.near(one, other, decimal=decimal)
    bases = (0, 10) if _bare_log(answer) or _bare_log(reference) else (0,)
    first: Undefined | None = None
    for base in bases:
        try:
            if _numerically(answer, reference, close, Approximation(0, values, complex_numbers, base), decimal):
                return True
        except Undefined as error:
            first = error
    if first is not None:
        raise first
    return False


def _numerically(answer: Node, reference: Node, close: Closeness, model: Approximation, decimal: bool) -> bool:
    orders, digits = 0, FIRST_DIGITS
    for attempt in range(3):
        runs = [replace(model, digits=digits + 10, scale=mpmath.mpf(1), orders=0) for _ in range(2)]
        one, other = (run.of(node) for run, node in zip(runs, (answer, reference), strict=True))
        with mpmath.workdps(digits + 10):
            scale = max(abs(one), abs(other), *(run.scale for run in runs))
            difference = abs(one - other)
            if difference > scale * mpmath.mpf(10) ** (-25 if attempt == 0 else -digits):
                return _near_values(one, other, decimal, close)
        if attempt and orders == max(run.orders for run in runs):
            return True
        orders = max(run.orders for run in runs)
        digits = FIRST_DIGITS + 2 * orders + _literal_digits(answer) + _literal_digits(reference)
        if digits > MAX_DIGITS:
            raise Undecided("numbers too large, or too near to each other, to be told apart")
    return True


def _near_values(one: Any, other: Any, decimal: bool, close: Closeness) -> bool:
    if not decimal and not close.tolerant:
        return False
    parts = [(mpmath.re(one), mpmath.re(other)), (mpmath.im(one), mpmath.im(other))]
    if any(abs(mpmath.mag(value)) > 10 * MAX_DIGITS for pair in parts for value in pair if value):
        return False
    return all(close.near(rational(a), rational(b), decimal=decimal) or a == b for a, b in parts)


def rational(value: Any) -> Fraction:
    """The exact value of a real floating-point number of mpmath's."""
    sign, mantissa, exponent, _ = mpmath.mpf(value)._mpf_
    whole = Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    return -whole if sign else whole


def _exactly(node: Node, values: dict[str, Fraction]) -> Fraction | None:
    try:
        return exact(node, values)
    except Undecided:
        return None


def _literal_digits(node: Node) -> int:
    return sum(
        (part.value.numerator.bit_length() + part.value.denominator.bit_length()) * 3 // 10
        for part in walk(node)
        if isinstance(part.value, Fraction)
    )


def _complex(node: Node) -> bool:
    return any(part.op is Op.CONSTANT and part.value == "i" for part in walk(node))


def _bare_log(node: Node) -> bool:
    return any(part.op is Op.CALL and part.value == "log" and len(part.args) == 1 for part in walk(node))


def infinite(node: Node) -> int | None:
    """1 for infinity, -1 for minus infinity, None for everything else."""
    sign = 1
    while node.op is Op.NEG:
        node, sign = node.args[0], -sign
    return sign if node.op is Op.CONSTANT and node.value == "inf" else None


# Matrices: their sums, products and multiples are carried out on the trees of their entries


def matrix(node: Node) -> list[list[Node]] | None:
    """The entries of a matrix, sums and products of matrices carried out; None for anything else.

    Raises `Unreadable` for matrices that cannot be added or multiplied.
    """
    if node.op is Op.MATRIX:
        return [list(row.args) for row in node.args]
    if not mentions(node, Op.MATRIX):
        return None
    if node.op is Op.NEG:
        inside = matrix(node.args[0])
        return None if inside is None else [[Node(Op.NEG, (cell,)) for cell in row] for row in inside]
    if node.op is Op.ADD:
        parts = [matrix(arg) for arg in node.args]
        total = parts[0]
        for part in parts[1:]:
            if total is None or part is None or (len(total), len(total[0])) != (len(part), len(part[0])):
                raise Unreadable("matrices of different sizes are added")
            total = [[Node(Op.ADD, pair) for pair in zip(*rows, strict=True)] for rows in zip(total, part, strict=True)]
        return total
    if node.op is Op.MUL:
        product: list[list[Node]] | None = None
        scalars: list[Node] = []
        for arg in node.args:
            part = matrix(arg)
            if part is None:
                scalars.append(arg)
            else:
                product = part if product is None else _times(product, part)
        assert product is not None
        return [[Node(Op.MUL, (*scalars, cell)) if scalars else cell for cell in row] for row in product]
    if node.op is Op.DIV:
        above = matrix(node.args[0])
        if above is not None and not mentions(node.args[1], Op.MATRIX):
            return [[Node(Op.DIV, (cell, node.args[1])) for cell in row] for row in above]
    raise Unreadable("a function of a matrix")


def _times(left: list[list[Node]], right: list[list[Node]]) -> list[list[Node]]:
    if len(left[0]) != len(right):
        raise Unreadable("matrices of different sizes are multiplied")
    columns = list(zip(*right, strict=True))
    return [
        [Node(Op.ADD, tuple(Node(Op.MUL, pair) for pair in zip(row, column, strict=True))) for column in columns]
        for row in left
    ]
