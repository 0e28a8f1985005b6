"""A place in the words of an expression, and how deep it is in brackets; what all levels of the grammar share."""

from __future__ import annotations

from quintain.verifiers.math.lexer import MAX_DEPTH, Token
from quintain.verifiers.math.tree import Refused, Unreadable


class Cursor:
    """The tokens of one expression and the next one to be read."""

    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._place = 0
        self._depth = 0
        self._bars = 0

    @property
    def next(self) -> Token:
        return self._tokens[self._place]

    def _take(self) -> Token:
        token = self._tokens[self._place]
        self._place += token.kind != "end"
        return token

    def _is(self, *texts: str) -> bool:
        return self.next.kind in ("sign", "command") and self.next.text in texts

    def _expect(self, text: str) -> None:
        if not (self.next.kind == "sign" and self.next.text == text):
            raise Unreadable(f"expected {text!r}, not {self.next.text!r}")
        self._take()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > 2 * MAX_DEPTH:
            raise Refused(f"an expression has at most {MAX_DEPTH} brackets, roots or signs in each other")
