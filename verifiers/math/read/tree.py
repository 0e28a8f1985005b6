"""Expressions as trees: what the grammar reads, and what the evaluation and the comparison work on.

A tree is immutable and hashable, so equal trees are equal mathematics. Structures (sets, intervals, equations)
are not expressions: they are in `shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final


class Unreadable(Exception):
    """The text is no expression of this grammar; somebody else may know it."""


class Undecided(Exception):
    """What the text says is ambiguous, or too large to be computed exactly: nobody shall guess."""


class Ambiguous(Undecided):
    """It has two readings. As the text that it is, it can still be compared."""


class Op(StrEnum):
    """What a node of a tree is."""

    NUMBER = "number"  # value: a Fraction
    SYMBOL = "symbol"  # value: its name
    CONSTANT = "constant"  # value: "pi", "e", "i" or "inf"
    ADD = "add"
    MUL = "mul"
    DIV = "div"
    POW = "pow"
    ROOT = "root"  # args: radicand, index
    NEG = "neg"
    EITHER = "either"  # args: a, b; value "+" for a ± b, "-" for a ∓ b
    CALL = "call"  # value: one of the known functions
    APPLY = "apply"  # value: the name of an unknown function
    MATRIX = "matrix"  # args: rows
    ROW = "row"


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `decimal` marks a number that was written as a decimal, which may have been rounded."""

    op: Op
    args: tuple[Node, ...] = ()
    value: Fraction | str = ""
    decimal: bool = False


def number(value: Fraction | int, *, decimal: bool = False) -> Node:
    """The tree of a number."""
    return Node(Op.NUMBER, (), Fraction(value), decimal)


def symbol(name: str) -> Node:
    """The tree of a variable."""
    return Node(Op.SYMBOL, (), name)


ONE: Final = number(1)
PI: Final = Node(Op.CONSTANT, (), "pi")
INFINITY: Final = Node(Op.CONSTANT, (), "inf")


def walk(node: Node) -> Iterator[Node]:
    """`node` and all below it."""
    yield node
    for arg in node.args:
        yield from walk(arg)


def symbols(node: Node) -> frozenset[str]:
    """The names of the variables in `node`."""
    return frozenset(str(part.value) for part in walk(node) if part.op is Op.SYMBOL)


def has_decimals(node: Node) -> bool:
    """Whether anything in `node` was written as a decimal."""
    return any(part.decimal for part in walk(node))


def mentions(node: Node, *ops: Op) -> bool:
    """Whether `node` has a node of one of `ops` in it."""
    return any(part.op in ops for part in walk(node))


def substituted(node: Node, names: dict[str, str]) -> Node:
    """`node` with its variables renamed."""
    if node.op is Op.SYMBOL:
        return symbol(names.get(str(node.value), str(node.value)))
    if not node.args:
        return node
    return Node(node.op, tuple(substituted(arg, names) for arg in node.args), node.value, node.decimal)


def with_sign(node: Node, upper: bool) -> Node:
    """`node` with every ± and ∓ in it resolved to its upper or its lower sign."""
    if not node.args:
        return node
    args = tuple(with_sign(arg, upper) for arg in node.args)
    if node.op is not Op.EITHER:
        return Node(node.op, args, node.value, node.decimal)
    first, second = args
    return Node(Op.ADD, (first, second if (node.value == "+") is upper else Node(Op.NEG, (second,))))
