"""Whether the shape of an answer is the shape of the reference, and the same inside.

Shapes of different types are different, with these exceptions, each a policy of its own:
- a name before an equals sign is not part of a value: `x = 5` is 5, and `5` is `x = 5`; but `y = 5` is not
  `x = 5`. A name is a variable, a function's value (`f(2)`), a length (`|AB|`), a ratio of names or a tuple of
  them, never a sum. Of a chain that begins with a name the last side counts (as in math-verify; it is still one answer
  and no more), of a chain of numbers alone every step must be true: `17 + 8 = 25` is 25, `3 = 5` is nothing;
- after `\\approx` comes a decimal for people: `x = 1/3 \\approx 0.33` is 1/3, and 0.33 only if that rounds it;
- in lists and sets the order does not matter, and repetition only where the reference has it; a list is the set of the
  same elements, in the order of a tuple the tuple (`1, 3` is `(1, 3)`, `3, 1` is not), and the set of one element is
  the element. A set is never a tuple; a matrix of one row or column is the tuple of its entries;
- `(a, b)` is a point or an open interval, whichever the other side is;
- an inequality in one variable is the interval of its solutions, `x \\in S` is S (an answer that is an inequality
  only with `relations_are_sets`);
- equations are the same where one is a multiple of the other, or where both are linear in a variable and have
  the same solution for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import Final, Literal

from quintain.verifiers.math.compare import equality, real_sets
from quintain.verifiers.math.compare.equality import Closeness, real_value
from quintain.verifiers.math.compare.equations import FLIPPED, same_zeros
from quintain.verifiers.math.read.numbers import parse_plain
from quintain.verifiers.math.read.reading import is_name
from quintain.verifiers.math.read.shapes import Combined, Ratio, Relation, Shape, ShapeGroup, Span, Value, Words
from quintain.verifiers.math.read.spelling import are_words, comparable, keeps_words, same_words, tokens_of
from quintain.verifiers.math.read.tree import PI, Node, Op, Unreadable, has_decimals, number, symbols, walk
from quintain.verifiers.math.read.units import conversion, split_unit

LEAST_PLACES: Final = 2
"""A decimal of fewer places behind an `\\approx` is too rough to stand for the number that it rounds: `14/3 \\approx 5`
would be two answers, and right beside either."""
NEAR: Final = Fraction(1, 20)
"""What is not written as a plain decimal is near where it is within this share of the exact value."""

_DECIMAL = re.compile(r"-?\d+(?:\.(\d+))?")
Fallback = Callable[[str, str], bool]
"""Compares the texts of two expressions that this grammar cannot read: the answer's and the reference's."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The comparison under one policy; `fallback` compares expressions that the grammar cannot read."""

    fallback: Fallback
    close: Closeness = field(default_factory=Closeness)
    units: Literal["lenient", "strict"] = "lenient"
    percent: Literal["strict", "lenient"] = "strict"
    relations_are_sets: bool = True

    def same(self, answer: Shape, reference: Shape) -> bool:
        """Whether `answer` is `reference`. Raises `Undecided` or `Unreadable` where that cannot be known."""
        if isinstance(answer, Words) or isinstance(reference, Words):
            return _same_text(answer, reference)
        if isinstance(answer, Relation) and isinstance(reference, Relation):
            return self._same_relation(answer, reference)
        if isinstance(answer, Relation) or isinstance(reference, Relation):
            return self._unwrapped(answer, reference)
        answer, reference = _alone(answer), _alone(reference)
        answer, reference = _beside(answer, reference), _beside(reference, answer)
        if isinstance(answer, Value) and isinstance(reference, ShapeGroup) and reference.kind == "list":  # 1/2 or 0.5
            return all(self.same(answer, item) for item in reference.items)
        if isinstance(reference, Value) and isinstance(answer, ShapeGroup) and answer.kind == "list":
            return all(self.same(item, reference) for item in answer.items)
        if isinstance(reference, ShapeGroup):
            if isinstance(answer, ShapeGroup):
                return self._same_group(answer, reference)
            if isinstance(answer, Span | Combined):
                return self._same_set(answer, reference)
            return False
        if isinstance(reference, Span | Combined):
            return isinstance(answer, Span | Combined | ShapeGroup) and self._same_set(answer, reference)
        if isinstance(reference, Ratio):
            return isinstance(answer, Ratio) and self._same_ratio(answer, reference)
        return isinstance(answer, Value) and isinstance(reference, Value) and self._same_value(answer, reference)

    def _same_value(self, answer: Value, reference: Value) -> bool:
        if (answer.unit is None) is not (reference.unit is None):  # 5m is 5 m
            answer, reference = _attached(answer, reference), _attached(reference, answer)
        factor = conversion(answer.unit, reference.unit, strict=self.units == "strict")
        if factor is None:
            return False
        if factor == 1 and comparable(answer.text) == comparable(reference.text):
            return True
        if answer.tree is None or reference.tree is None:
            return factor == 1 and self.fallback(answer.text, reference.text)
        if (radians := _in_radians(answer, reference)) is not None:
            return equality.equal(*radians, self.close)
        if not self.close.rename and not (_keeps(answer, reference) and _keeps(reference, answer)):
            return False
        if are_words(answer.text, reference.text):
            return same_words(answer.text, reference.text)
        tree = answer.tree if factor == 1 else Node(Op.MUL, (number(factor), answer.tree))
        if self.percent == "lenient" and reference.percent and not answer.percent:
            hundredfold = Node(Op.MUL, (number(100), reference.tree))
            if equality.equal(tree, hundredfold, self.close):
                return True
        try:
            return equality.equal(tree, reference.tree, self.close)
        except Unreadable:
            return self.fallback(answer.text, reference.text)

    # Groups

    def _same_group(self, answer: ShapeGroup, reference: ShapeGroup) -> bool:
        kinds = {answer.kind, reference.kind}
        if kinds == {"set", "tuple"}:
            return False
        if "tuple" in kinds:
            return len(answer.items) == len(reference.items) and all(
                self.same(one, other) for one, other in zip(answer.items, reference.items, strict=True)
            )
        if kinds == {"list"}:
            if self._same_parts(answer.items, reference.items):
                return True
            if self._repeats(reference.items):
                return False
        return all(any(self._is(one, other) for other in reference.items) for one in answer.items) and all(
            any(self._is(one, other) for one in answer.items) for other in reference.items
        )

    def _is(self, one: Shape, other: Shape) -> bool:
        """`same`, where what cannot be known about one pair is left to the other pairs."""
        try:
            return self.same(one, other)
        except Unreadable:
            return False

    def _same_set(self, answer: Shape, reference: Shape) -> bool:
        """Sets of real numbers: part by part, else by what is in them."""
        if isinstance(answer, Span) and isinstance(reference, Span):
            if (answer.low_open, answer.high_open) != (reference.low_open, reference.high_open):
                return False
            return self.same(answer.low, reference.low) and self.same(answer.high, reference.high)
        for one, other in ((answer, reference), (reference, answer)):
            if isinstance(one, Span) and isinstance(other, ShapeGroup) and other.kind != "set":
                if len(other.items) != 2 or other.kind == "list" or not (one.low_open and one.high_open):
                    return False
                return self.same(one.low, other.items[0]) and self.same(one.high, other.items[1])
        if (
            isinstance(answer, Combined)
            and isinstance(reference, Combined)
            and answer.op == reference.op != "minus"
            and self._same_parts(answer.parts, reference.parts)
        ):
            return True
        return real_sets.same(answer, reference)

    def _repeats(self, items: Sequence[Shape]) -> bool:
        return any(self._is(one, other) for place, one in enumerate(items) for other in items[:place])

    def _same_parts(self, answer: Sequence[Shape], reference: Sequence[Shape]) -> bool:
        """Whether the parts are the same, each as often, in any order."""
        left = list(reference)
        for part in answer:
            match = next((place for place, other in enumerate(left) if self._is(part, other)), None)
            if match is None:
                return False
            del left[match]
        return not left

    def _same_ratio(self, answer: Ratio, reference: Ratio) -> bool:
        if len(answer.parts) != len(reference.parts):
            return False
        if comparable(answer.text) == comparable(reference.text):
            return True
        halves = [re.fullmatch(r"(.*?)( [ap]m)?", side.text) for side in (answer, reference)]
        times, noons = ([half and half[group] for half in halves] for group in (1, 2))
        if noons[0] != noons[1]:  # the question says which half of the day, mostly
            return None in noons and times[0] == times[1]
        if re.search(r":\s*0\d", answer.text + reference.text):  # a time of day
            return False
        trees = [[part.tree for part in side.parts if isinstance(part, Value)] for side in (answer, reference)]
        if any(tree is None for side in trees for tree in side) or len(trees[0]) != len(trees[1]):
            return False
        one, other = ([tree for tree in side if tree is not None] for side in trees)
        return all(  # of all pairs: a part may be 0
            equality.equal(Node(Op.MUL, (first, other_second)), Node(Op.MUL, (second, other_first)), self.close)
            for (first, other_first), (second, other_second) in combinations(zip(one, other, strict=True), 2)
        )

    # Relations

    def _unwrapped(self, answer: Shape, reference: Shape) -> bool:
        """One side is a relation, the other a value or a set."""
        trusted = isinstance(reference, Relation)
        relation, other = (reference, answer) if trusted else (answer, reference)
        assert isinstance(relation, Relation)
        found = self._claimed(relation, trusted=trusted)
        if found is not None:
            return any(self.same(answer, claim) if trusted else self.same(claim, reference) for claim in found)
        is_set = isinstance(other, Span | Combined | ShapeGroup) and (trusted or self.relations_are_sets)
        return is_set and real_sets.same(relation, other)

    def _claimed(self, relation: Relation, *, trusted: bool) -> tuple[Shape, ...] | None:
        """The value, with its rounded decimal, that a chain of equalities claims; None where it claims none."""
        if relation.ops == ("in",):
            return (relation.sides[1],) if is_name(relation.texts[0]) and not _is_number(relation.sides[1]) else None
        if not set(relation.ops) <= {"=", "~"}:
            return None
        # Of `x = 1/3 ≈ 0.33` the exact value counts; of `x ≈ 11` there is no other.
        named = is_name(relation.texts[0])
        last = len(relation.ops)
        while last > (1 if named else 0) and relation.ops[last - 1] == "~":
            last -= 1
        exactly = relation.sides[last]
        claims: tuple[Shape, ...] = (exactly,)
        for approximate in relation.sides[last + 1 :]:
            if not (trusted or named or is_near(approximate, exactly)):
                return None
            if stands_for(approximate, exactly):
                claims = (*claims, approximate)
        steps = [side for side, text in zip(relation.sides[:last], relation.texts, strict=False) if not is_name(text)]
        if named and not all(self._is_step(side, exactly) for side in steps):
            return None  # x = 6 = 5
        if last == 0 or named or (trusted and any(is_name(text) for text in relation.texts[:last])):
            return claims
        if not all(_is_number(side) for side in relation.sides):
            return None
        true = all(self.same(side, exactly) for side in relation.sides[:last])
        return claims if true else None

    def _is_step(self, side: Shape, result: Shape) -> bool:
        """Whether `side`, of a chain before its `result`, may be what it is worked out from."""
        if not (isinstance(side, Value) and isinstance(result, Value)) or side.tree is None or result.tree is None:
            return isinstance(side, Value) and side.tree is None
        return self._is(Value(side.text, side.unit, side.tree), Value(result.text, result.unit, result.tree))

    def _same_relation(self, answer: Relation, reference: Relation) -> bool:
        if "in" in answer.ops or "in" in reference.ops:
            inner = [
                relation.sides[1] if relation.ops == ("in",) and is_name(relation.texts[0]) else relation
                for relation in (answer, reference)
            ]
            if any(relation.ops == ("in",) and _is_number(relation.sides[1]) for relation in (answer, reference)):
                return False
            if inner[0] is answer and inner[1] is reference:
                return False
            both = answer.ops == reference.ops == ("in",)
            return (not both or self._same_name(answer.texts[0], reference.texts[0])) and self.same(*inner)
        one, other = self._claimed(answer, trusted=False), self._claimed(reference, trusted=True)
        if one is not None and other is not None and is_name(answer.texts[0]) and is_name(reference.texts[0]):
            names = [[text for text in side.texts[:-1] if is_name(text)] for side in (answer, reference)]
            if all(self._same_name(*pair) for pair in zip(*names, strict=False)):
                if any(self.same(claim, other[0]) for claim in one):
                    return True
                return len(answer.ops) == len(reference.ops) == 1 and self._same_equation(answer, reference)
            return self._same_equation(answer, reference)
        if one is not None and other is None:
            return self._same_equation(answer, reference)
        return self._same_equation(answer, reference) or (
            self.relations_are_sets and self._inequalities(answer, reference)
        )

    def _inequalities(self, answer: Relation, reference: Relation) -> bool:
        names = [real_sets.variable(relation) for relation in (answer, reference)]
        if None in names or (names[0] != names[1] and not self.close.rename):
            return False
        return real_sets.same(answer, reference)

    def _same_name(self, one: str, other: str) -> bool:
        if self.close.rename:
            return True
        one, other = ("".join(tokens_of(text)) for text in (one, other))
        return one == other or (
            one.partition("(")[0] == other.partition("(")[0] != "" and ("(" in one) != ("(" in other)
        )

    def _same_equation(self, answer: Relation, reference: Relation) -> bool:
        """Relations of one, or step by step of several operators."""
        if len(answer.ops) != len(reference.ops):
            return False
        if len(answer.ops) > 1:
            return self._same_chain(answer, reference) or self._same_chain(_reversed(answer), reference)
        op, expected = answer.ops[0], reference.ops[0]
        if {op, expected} <= {"=", "~"} or op == expected or FLIPPED.get(op) == expected:
            one, other = _difference(answer), _difference(reference)
            if one is None or other is None:
                return self._same_chain(answer, reference)
            return same_zeros(one, other, op, expected, rename=self.close.rename)
        return False

    def _same_chain(self, answer: Relation, reference: Relation) -> bool:
        return answer.ops == reference.ops and all(
            self._is(*pair) for pair in zip(answer.sides, reference.sides, strict=True)
        )


def _in_radians(answer: Value, reference: Value) -> tuple[Node, Node] | None:
    """Both sides in radians, where one is in degrees and the other has no unit but a pi."""
    degrees = [value.unit is not None and value.unit.dimension == (("degree", 1),) for value in (answer, reference)]
    if sum(degrees) != 1 or answer.tree is None or reference.tree is None:
        return None
    other = reference if degrees[0] else answer
    if other.unit is not None or other.tree is None or PI not in walk(other.tree):
        return None
    converted = [
        Node(Op.DIV, (Node(Op.MUL, (tree, PI)), number(180))) if in_degrees else tree
        for tree, in_degrees in zip((answer.tree, reference.tree), degrees, strict=True)
    ]
    return converted[0], converted[1]


def _beside(shape: Shape, other: Shape) -> Shape:
    """`shape`; beside a group, a matrix of one column, or of one row, is the tuple of its entries."""
    if not (isinstance(shape, Value) and isinstance(other, ShapeGroup)):
        return shape
    rows = [row.args for row in shape.tree.args] if shape.tree is not None and shape.tree.op is Op.MATRIX else []
    cells = [cell for row in rows for cell in row]
    if len(cells) < 2 or len(cells) not in (len(rows), len(rows[0])):
        return shape
    return ShapeGroup("tuple", tuple(Value("", None, cell) for cell in cells))


def _alone(shape: Shape) -> Shape:
    if isinstance(shape, ShapeGroup) and shape.kind == "set" and len(shape.items) == 1:
        return shape.items[0]
    return shape


def _keeps(value: Value, other: Value) -> bool:
    """Whether no word of `value` has gone in `other`; those of a plain number, as in 5 percent, are read."""
    return parse_plain(value.text) is not None or keeps_words(value.text, other.text)


def _attached(value: Value, other: Value) -> Value:
    """`value` with the unit right behind its number, where `other` has one."""
    if value.unit is not None or other.unit is None:
        return value
    text, unit = split_unit(value.text, attached=True)
    plain = parse_plain(text) if unit is not None else None
    if plain is None or not isinstance(plain.value, Fraction):
        return value
    return Value(text, unit, number(plain.value, decimal=plain.decimal))


def _same_text(answer: Shape, reference: Shape) -> bool:
    """Where one side is text. Raises `Unreadable` where it is the answer alone."""
    if isinstance(answer, Words) and isinstance(reference, Words):
        return same_words(answer.text, reference.text)
    if isinstance(answer, Words):
        raise Unreadable(f"{answer.text[:100]!r} is no mathematics")
    return False


def _is_number(shape: Shape) -> bool:
    """Whether `shape` is an expression without variables."""
    return isinstance(shape, Value) and shape.tree is not None and not symbols(shape.tree)


def _difference(relation: Relation) -> Node | None:
    left, right = relation.sides
    if not (isinstance(left, Value) and isinstance(right, Value)) or left.tree is None or right.tree is None:
        return None
    return Node(Op.ADD, (left.tree, Node(Op.NEG, (right.tree,))))


def _reversed(relation: Relation) -> Relation:
    ops = tuple(FLIPPED.get(op, op) for op in reversed(relation.ops))
    return Relation(ops, tuple(reversed(relation.sides)), tuple(reversed(relation.texts)))


def is_near(approximate: Shape, exact: Shape) -> bool:
    """Whether `approximate` is `exact`, rounded or cut off at its last place."""
    values, places = _values(approximate, exact), _places(approximate)
    if values is None:
        return False
    one, other = values
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
