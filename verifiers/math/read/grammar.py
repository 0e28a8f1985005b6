"""Reads one expression, in LaTeX or as typed into a programme, into a tree.

The grammar is small and strict. What always holds:
- every character is read: text that is left over, or stands in the way, makes the whole unreadable, and
  `4\\sqrt(2)` is never 4;
- two numbers with nothing but a blank between them are refused, not multiplied;
- time and depth are bounded by the guards of `check_size`, whatever the text.

Conventions: `1/2x` is (1/2)x; `\\sin 2x` is sin(2x), `\\sin(x) y` is sin(x)·y; `\\sin^2 x` is (sin x)^2, and
`\\sin^{-1}` the inverse function; `\\log` is the natural or the decimal logarithm, whichever makes the two sides
equal; `x^10` is x to the tenth; `e` and `i` are the constants unless they have an index; f, g and h before a
parenthesis are functions, other letters are factors.
"""

from __future__ import annotations

import re
from typing import Final

from quintain.verifiers.math.read.lexer import check_size, tokens
from quintain.verifiers.math.read.primaries import Primaries
from quintain.verifiers.math.read.tree import ONE, PI, Ambiguous, Node, Op, Undecided, Unreadable, number

MAX_MATRIX_SIDE: Final = 12
MAX_ALTERNATIVES: Final = 4


def parse(text: str) -> Node:
    """The tree of `text`. Raises `Unreadable` where it is none, `Undecided` where it is ambiguous or too large."""
    check_size(text)
    parser = _Parser(tokens(text))
    node = parser.sum()
    if parser.next.kind != "end":
        raise Unreadable(f"{parser.next.text!r} in an expression")
    return node


class _Parser(Primaries):
    """Recursive descent; one method for each level of binding."""

    def sum(self) -> Node:
        terms = [self._signed()]
        alternatives = 0
        while self._is("+", "-", "pm", "mp"):
            sign = self._take().text
            term = self._signed()
            if sign in ("pm", "mp"):
                alternatives += 1
                if alternatives > MAX_ALTERNATIVES:
                    raise Undecided(f"an expression has at most {MAX_ALTERNATIVES} signs \\pm")
                before = terms[0] if len(terms) == 1 else Node(Op.ADD, tuple(terms))
                terms = [Node(Op.EITHER, (before, term), "+" if sign == "pm" else "-")]
            else:
                terms.append(term if sign == "+" else Node(Op.NEG, (term,)))
        return terms[0] if len(terms) == 1 else Node(Op.ADD, tuple(terms))

    def _signed(self) -> Node:
        if self._is("+", "-", "pm", "mp"):
            sign = self._take().text
            self._deeper()
            term = self._signed()
            self._depth -= 1
            if sign in ("pm", "mp"):
                return Node(Op.EITHER, (number(0), term), "+" if sign == "pm" else "-")
            return term if sign == "+" else Node(Op.NEG, (term,))
        return self._product()

    def _product(self) -> Node:
        factors = [self._power()]  # flat, so that a long product is no deep tree
        while True:
            if self._is("*", "cdot", "times", "ast"):
                self._take()
                factors.append(self._factor())
            elif self._is("/", "div"):
                self._take()
                divisor = self._factor()
                if len(factors) == 1 and factors[0].op is not Op.DIV:
                    factors = [Node(Op.DIV, (factors[0], divisor))]
                else:
                    factors.append(Node(Op.DIV, (ONE, divisor)))
            elif self.next.kind == "number":
                raise Ambiguous("two numbers side by side")
            elif self._starts_primary():
                factors.append(self._power())
            else:
                return factors[0] if len(factors) == 1 else Node(Op.MUL, tuple(factors))

    def _factor(self) -> Node:
        if self._is("+", "-"):
            sign = self._take().text
            factor = self._power()
            return factor if sign == "+" else Node(Op.NEG, (factor,))
        return self._power()

    def _power(self) -> Node:
        base = self._postfix(self._primary())
        if self._is("^"):
            self._take()
            self._deeper()
            if self._is("circ", "degree"):
                self._take()
                base = _degrees(base)
            else:
                exponent = self._exponent()
                base = _degrees(base) if exponent is None else Node(Op.POW, (base, exponent))
            self._depth -= 1
            base = self._postfix(base)
        return base

    def _exponent(self) -> Node | None:
        """What is raised, or None for a degree sign."""
        if self._is("{"):
            self._take()
            if self._is("circ"):
                self._take()
                self._expect("}")
                return None
            if self._is("prime"):
                raise Unreadable("a derivative")
            inside = self.sum()
            self._expect("}")
            return inside
        return self._factor()

    def _postfix(self, node: Node) -> Node:
        depth = self._depth
        while True:
            self._deeper()
            if self._is("!"):
                self._take()
                if self._is("!"):
                    raise Unreadable("a double factorial")
                node = Node(Op.CALL, (node,), "factorial")
            elif self._is("%"):
                self._take()
                node = Node(Op.DIV, (node, number(100)))
            elif self._is("degree"):
                self._take()
                node = _degrees(node)
            else:
                self._depth = depth
                return node

    def _matrix(self, cells: str) -> Node:
        rows = [row for row in re.split(r"\\\\|\\cr(?![A-Za-z])", cells) if row.strip() and row.strip() != r"\hline"]
        found = [tuple(parse(cell) for cell in row.split("&")) for row in rows]
        if not found or len({len(row) for row in found}) != 1:
            raise Unreadable("a matrix has rows of one length")
        if len(found) > MAX_MATRIX_SIDE or len(found[0]) > MAX_MATRIX_SIDE:
            raise Undecided(f"a matrix has at most {MAX_MATRIX_SIDE} rows and columns")
        return Node(Op.MATRIX, tuple(Node(Op.ROW, row) for row in found))


def _degrees(node: Node) -> Node:
    return Node(Op.DIV, (Node(Op.MUL, (node, PI)), number(180)))
