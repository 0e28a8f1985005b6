"""What an answer can be: a value, a list, a tuple, a set, an interval, a relation, a ratio, or words.

Plain data; `reading` makes it out of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from quintain.verifiers.math.read.tree import INFINITY, Node, Op
from quintain.verifiers.math.read.units import Unit

Kind = Literal["list", "tuple", "set"]


@dataclass(frozen=True, slots=True)
class Value:
    """One expression: its text, without its unit, and its tree, or why there is none."""

    text: str
    unit: Unit | None = None
    tree: Node | None = None
    percent: bool = False


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """Several shapes."""

    kind: Kind
    items: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """An interval."""

    low: Shape
    high: Shape
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True)
class Combined:
    """A union, an intersection or a difference of sets."""

    op: Literal["cup", "cap", "minus"]
    parts: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """`sides[0] ops[0] sides[1] ops[1] sides[2] …`; the operators are `= != < <= > >= ~ in`."""

    ops: tuple[str, ...]
    sides: tuple[Shape, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """`a : b : c`, or a time of day."""

    parts: tuple[Shape, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """No mathematics."""

    text: str


Shape = Value | ShapeGroup | Span | Combined | Relation | Ratio | Words


def parts_of(shape: Shape) -> tuple[Shape, ...]:
    """The shapes that `shape` is made of; the sides of a relation are read one by one, for some of them are names."""
    match shape:
        case ShapeGroup(items=parts) | Combined(parts=parts) | Ratio(parts=parts):
            return parts
        case Span():
            return shape.low, shape.high
    return ()


EMPTY: Final = ShapeGroup("set", ())
REALS: Final = Span(Value(r"-\infty", None, Node(Op.NEG, (INFINITY,))), Value(r"\infty", None, INFINITY), True, True)
