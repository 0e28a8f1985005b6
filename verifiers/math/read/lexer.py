"""The words of an expression, and the guards that bound how long, how deep and how large it may be.

What always holds: a text is refused by its size before anything else is done with it, and a number is read exactly
or refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Final

from quintain.verifiers.math.read.tree import Node, Undecided, Unreadable, number

MAX_CHARS: Final = 4_000
MAX_DEPTH: Final = 50
MAX_TOKENS: Final = 1_500
MAX_LITERAL_DIGITS: Final = 1_000
MAX_POWER_OF_TEN: Final = 1_000

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<matrix>\\begin\s*\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\s*\{[^{}]*\})?(?P<cells>(?:(?!\\begin).)*?)
                 \\end\s*\{(?:[pbB]?matrix|smallmatrix|array)\})
    | (?P<number>(?:\d+(?:\.(?:\d+|(?!\s*\\overline)))?|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?)
    | (?P<letters>[A-Za-z]+)
    | (?P<command>\\[A-Za-z]+)
    | (?P<sign>\*\*|[-+*/^_()\[\]{}|!%',<>])
    )""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_WORDS = re.compile(
    "arc(?:sin|cos|tan|cot)|asin|acos|atan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|cis|ln|log|exp|abs|floor|ceil|gcd|lcm"
    "|max|min|sqrt|cbrt|pi|theta|alpha|beta|infinity|inf|binom|[A-Za-z]"
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # number, name, letter, command, sign, matrix, end
    text: str


def check_size(text: str) -> None:
    """Raise `Undecided` for a text that is too long, or nested too deeply, to be looked at any closer."""
    if len(text) > MAX_CHARS:
        raise Undecided(f"an expression has at most {MAX_CHARS} characters")
    depths = accumulate((char in "([{") - (char in ")]}") for char in text)
    if max(depths, default=0) > MAX_DEPTH:
        raise Undecided(f"an expression has at most {MAX_DEPTH} brackets in each other")
    if text.count("^") + text.count("**") + text.count("_") > 4 * MAX_DEPTH:
        raise Undecided("an expression has at most a few hundred exponents")


def tokens(text: str) -> list[Token]:
    found: list[Token] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unreadable(f"{text[place : place + 20]!r} in an expression")
        place = match.end()
        kind = str(match.lastgroup)
        if kind == "letters":
            words = _WORDS.findall(match[kind])
            found += [Token("letter" if len(word) == 1 else "name", word) for word in words]
        else:
            text_of = match["cells"] if kind == "matrix" else match[kind].lstrip("\\").replace("**", "^")
            found.append(Token(kind, text_of))
        if len(found) > MAX_TOKENS:
            raise Undecided(f"an expression has at most {MAX_TOKENS} parts")
    found.append(Token("end", ""))
    return found


def literal(text: str) -> Node:
    """The number that `text` writes, exactly."""
    digits, _, power = text.lower().partition("e")
    if len(digits) > MAX_LITERAL_DIGITS or len(power) > 6 or abs(int(power or 0)) > MAX_POWER_OF_TEN:
        raise Undecided(f"a number in an expression has at most {MAX_LITERAL_DIGITS} digits")
    value = Fraction(digits.rstrip(".") or "0") * Fraction(10) ** int(power or 0)
    return number(value, decimal="." in digits or bool(power))


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
        if not self._is(text):
            raise Unreadable(f"expected {text!r}, not {self.next.text!r}")
        self._take()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > 2 * MAX_DEPTH:
            raise Undecided(f"an expression has at most {MAX_DEPTH} brackets, roots or signs in each other")
