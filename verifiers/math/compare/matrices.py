"""Sums, products and multiples of matrices, carried out on their entries' trees."""

from __future__ import annotations

from quintain.verifiers.math.read.tree import Node, Op, Unreadable, mentions


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
        [
            Node(Op.ADD, tuple(Node(Op.MUL, pair) for pair in zip(row, column, strict=True)))
            if len(row) > 1
            else Node(Op.MUL, (row[0], column[0]))
            for column in columns
        ]
        for row in left
    ]
