"""Expressions beyond our own grammar (sums, integrals, limits, determinants …), compared with math-verify and sympy.

Only single expressions come here, never sets, tuples or equations, so what math-verify mixes up among those cannot
happen; what it gets wrong about numbers is corrected: two numbers are compared by value, with a relative error,
whatever their size. `guard` refuses, before anything is parsed, what would be computed for ever. Imported in worker
processes only: this loads sympy, and may hang all the same, for which the pool has its deadline.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from fractions import Fraction
from typing import Any, Final

import sympy
from math_verify import LatexExtractionConfig, parse, verify

from quintain.verifiers.math.compare.equality import Closeness
from quintain.verifiers.math.read import grammar
from quintain.verifiers.math.read.exact import Undefined, exact
from quintain.verifiers.math.read.reading import BEYOND
from quintain.verifiers.math.read.spelling import tokens_of
from quintain.verifiers.math.read.tree import Node, Undecided, Unreadable, walk

EVALUATED_DIGITS: Final = 60
"""Precision to which numbers that are neither rational nor decimal are computed."""
EXACT_DIGITS: Final = 40
"""Two such numbers are different where they differ within so many digits."""
MAX_CHARS: Final = 1_500
MAX_DIGITS: Final = 60
MAX_EXPONENT: Final = 1_000

_SERIES = re.compile(r"\\(?:sum|prod)(?![A-Za-z])")
_INDEX = re.compile(r"_\s*\{?\s*([A-Za-z])\s*=")
_DIGITS = re.compile(r"\d+")
_EXPONENT = re.compile(r"\^\s*\{?\s*[-+(]*\s*(\d+)")
_TOWER = re.compile(r"\^\s*(?:\{[^{}^]*|[\w\\]+\s*)\^\s*(?:\{[^{}^]*|[\w\\]+\s*)\^")
_FACTORIAL = re.compile(r"(\d+)[\s})\]]*!")
_NAMES = re.compile(r"(?<![A-Za-z\\])(infinity|inf|pi|theta|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![A-Za-z])")
_LATEX: Final = {"infinity": r"\infty ", "inf": r"\infty "}


def same(answer: str, reference: str, close: Closeness) -> bool:
    """Whether two texts, each one expression, are the same mathematics.

    Raises `Unreadable` where one of them is none that math-verify knows, `Undecided` where the guard says no.
    """
    for text in (answer, reference):
        guard(text)
        if BEYOND.search(text) is None:
            _must_be_small(grammar.parse(text))  # math-verify would guess at what we cannot read
    if _is_series(answer) or _is_series(reference):
        return tokens_of(answer) == tokens_of(reference)
    given, gold = _parsed(answer), _parsed(reference)
    if is_number(gold) and is_number(given):
        return same_number(given.doit(), gold.doit(), close)
    return bool(
        verify(
            gold, given, float_rounding=close.places, strict=not close.rename, timeout_seconds=None, raise_on_error=True
        )
    )


def _is_series(text: str) -> bool:
    """Whether it is an infinite sum or product with a variable left, which sympy may work on for minutes."""
    if r"\infty" not in text or _SERIES.search(text) is None:
        return False
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))
    return not letters <= {"e", "i", *_INDEX.findall(text)}


def readable(text: str) -> bool:
    """Whether math-verify can read `text` as one expression."""
    try:
        guard(text)
        if BEYOND.search(text) is None:
            return False
        if _is_series(text):
            return True
        _parsed(text)
    except (Undecided, Unreadable):
        return False
    return True


def guard(text: str) -> None:
    """Raise `Undecided` for what a computer algebra system would compute for ever."""
    if len(text) > MAX_CHARS:
        raise Undecided(f"the expression has more than {MAX_CHARS} characters")
    if any(len(digits) > MAX_DIGITS for digits in _DIGITS.findall(text)):
        raise Undecided(f"the expression has a number of more than {MAX_DIGITS} digits")
    if any(int(power) > MAX_EXPONENT for power in _EXPONENT.findall(text)):
        raise Undecided(f"the expression has an exponent of more than {MAX_EXPONENT}")
    if _TOWER.search(text):
        raise Undecided("the expression has exponents upon exponents")
    if "!!" in text.replace(" ", "") or any(int(n) > MAX_EXPONENT for n in _FACTORIAL.findall(text)):
        raise Undecided(f"the expression has a factorial of more than {MAX_EXPONENT}")


def _must_be_small(tree: Node) -> None:
    """Raise `Undecided` where sympy, which works out every number at once, would write out one that is too long."""
    for part in walk(tree):
        with suppress(Undefined):
            exact(part)


def quiet() -> None:
    """math-verify logs every text that it cannot parse."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def _parsed(text: str) -> Any:
    if re.search(r"dots|\.\.|'|\?|#", text):
        raise Unreadable(f"{text[:100]!r} is no expression")
    text = _NAMES.sub(lambda name: _LATEX.get(name[0], "\\" + name[0]), text)
    found = parse(
        f"${text}$",
        [LatexExtractionConfig(boxed_match_priority=-1)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    if not found or not isinstance(found[0], sympy.Expr):
        raise Unreadable(f"math-verify cannot read {text[:100]!r} as an expression")
    return found[0]


def is_number(value: Any) -> bool:
    """Whether `value` is an expression without variables."""
    return isinstance(value, sympy.Expr) and not value.free_symbols and bool(value.is_number)


def same_number(one: Any, other: Any, close: Closeness) -> bool:
    """Whether two evaluated numbers are the same; decimals may be rounded (`numbers.rounds_to`)."""
    if not (one.is_finite and other.is_finite):
        return bool(one == other) and one not in (sympy.nan, sympy.zoo)
    decimal = one.has(sympy.Float) or other.has(sympy.Float)
    exact = (exactly(one), exactly(other))
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1] or close.near(exact[0], exact[1], decimal=decimal)
    if one == other:
        return True
    pairs = zip(computed(one), computed(other), strict=True)
    if decimal or close.tolerant:
        return all(a == b or close.near(a, b, decimal=decimal) for a, b in pairs)
    difference = abs(sympy.N(one - other, EVALUATED_DIGITS))
    scale = max(abs(sympy.N(one, EVALUATED_DIGITS)), abs(sympy.N(other, EVALUATED_DIGITS)))
    return bool(difference <= scale * sympy.Float(10) ** -EXACT_DIGITS)


def exactly(value: Any) -> Fraction | None:
    """The exact value of an integer, a fraction, or a decimal as it was written; None for everything else."""
    if isinstance(value, sympy.Rational):
        return Fraction(int(value.p), int(value.q))
    if isinstance(value, sympy.Float) and value.is_finite:
        return Fraction(str(value))
    return None


def computed(value: Any) -> tuple[Fraction, Fraction]:
    """The real and imaginary parts of a number, as decimals of enough digits."""
    number = sympy.N(value, EVALUATED_DIGITS)
    real, imaginary = number.as_real_imag()
    return Fraction(str(real)), Fraction(str(imaginary))
