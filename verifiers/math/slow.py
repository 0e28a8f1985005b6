"""The full check, with math-verify. Imported only in the pool's processes: it loads sympy, and it may hang.

math-verify parses and compares; what it is known to get wrong is corrected here, where both sides are
numbers:
- two numbers are compared by value, exactly or by the rule of `numbers.rounds_to`, so that 12 % is not 12,
  2^-99 is not 2^-98 and 1e-7 is not 2e-7;
- an equation is unwrapped to its right side only if its left side is a name or arithmetic: x^2 = 25 is not
  25. Neither raises nor catches what says that the process is unfit (memory, recursion): the pool must know.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any, Final

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Equality, Relational
from sympy.parsing.sympy_parser import parse_expr

from quintain.failure import one_line
from quintain.verdict import Outcome
from quintain.verifiers.math.numbers import rounds_to

EVALUATED_DIGITS: Final = 40
"""Precision to which numbers that are neither rational nor decimal are computed."""
EXACT_DIGITS: Final = 25
"""Two such numbers are different where they differ within so many digits."""

_ARITHMETIC = re.compile(r"[\d\s.+\-*/^()]+", re.ASCII)
_WORDS: Final = {
    "infinity": r"\infty ",
    "inf": r"\infty ",
    "pi": r"\pi ",
    "theta": r"\theta ",
    "and": ",",
    "or": ",",
    "percent": r"\%",
}
_NAMES = re.compile(r"(?<![A-Za-z\\])(?:infinity|inf|pi|theta|and|or|percent)(?![A-Za-z])")
_FUNCTIONS = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan)(?![A-Za-z])")
_MIXED = re.compile(r"(?<![\d.])(\d+) +(\d+) */ *(\d+)(?![\d.])")
_SCIENTIFIC = re.compile(r"(?<=[\d.])\s*[eE]\s*([+-]?\d+)(?![\d.])")
_ROOT = re.compile(r"(?<![A-Za-z\\])(?:sqrt)\s*\(([^()]*)\)")
_POWER = re.compile(r"(?:\*\*|\^)\s*(?:\(([^()]*)\)|([+-]?\d+))")

_WARM_UP: Final = (
    (r"\frac{1}{2}", "0.5"),
    (r"2\sqrt{3}+1", r"1+\sqrt{12}"),
    (r"\frac{\pi}{3}", "1.047198"),
    (r"\{1, -2\}", r"\{-2, 1\}"),
    ("(1, 2)", "(1, 3)"),
    (r"[0, 1) \cup (2, \infty)", r"(2, \infty) \cup [0, 1)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 5 \end{bmatrix}"),
    ("y = 2x + 1", "y - 2x = 1"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"12\%", "0.12"),
    (r"3 \times 10^{-4}", r"\frac{3}{10000}"),
    (r"5!", r"\binom{10}{3}"),
    (r"3 + 2i", "2i + 3"),
)


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on `{"answer", "reference", "factor": [numerator, denominator], "places"}`."""
    gold = parsed(item["reference"])
    if gold is None:
        message = f"math-verify cannot read the reference {item['reference'][:100]!r}"
        return {"outcome": Outcome.BAD_REFERENCE, "message": message}
    if is_number(gold) and gold.doit() in (sympy.zoo, sympy.nan):
        return {"outcome": Outcome.BAD_REFERENCE, "message": "the reference divides by zero"}
    given = parsed(item["answer"])
    if given is None:
        return {"outcome": Outcome.UNPARSABLE, "detail": {"reason": "math-verify cannot read the answer"}}
    try:
        if item["factor"] != [1, 1]:
            given = given * sympy.Rational(*item["factor"])
        equal = equivalent(given, gold, item["places"])
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the boundary: what cannot be compared with the reference is not equal to it
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        return {"outcome": Outcome.WRONG, "detail": {"reason": reason}}
    return {"outcome": Outcome.CORRECT if equal else Outcome.WRONG}


def warm_up() -> None:
    """Load the parser's tables and caches, which are then there in every forked worker."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for answer, reference in _WARM_UP:
        check({"answer": answer, "reference": reference, "factor": [1, 1], "places": 6})


def parsed(text: str) -> Any:
    """`text` as a sympy object, unevaluated, or None."""
    if _ARITHMETIC.fullmatch(text):
        try:
            return parse_expr(text.replace("^", "**"), evaluate=False)
        except (SyntaxError, TypeError, ValueError, AttributeError, sympy.SympifyError):
            pass  # "2(3)" and "007" are mathematics all the same
    found = parse(
        f"${as_latex(text)}$",
        [LatexExtractionConfig(boxed_match_priority=-1)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if found else None


def as_latex(text: str) -> str:
    """`text`, which may be written as in a programme or an e-mail, as LaTeX on one line."""
    text = " ".join(text.replace("$", " ").split())
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _SCIENTIFIC.sub(r" \\times 10^{\1}", text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _POWER.sub(lambda power: "^{" + (power[1] or power[2] or "") + "}", text)
    text = _NAMES.sub(lambda name: _WORDS[name[0]], text)
    text = _FUNCTIONS.sub(r"\\\1", text)
    text = text.replace(r"\varnothing", r"\emptyset")
    return re.sub(r"(?<!\\)%", r"\\%", text)


def equivalent(given: Any, gold: Any, places: int) -> bool:
    """Whether `given` is `gold`, both as `parsed` gives them."""
    if isinstance(given, Equality) and not isinstance(gold, Relational):
        left, right = given.args
        if not (left.is_Symbol or left.is_Function or not left.free_symbols):
            return False
        if is_number(right) and is_number(gold):
            return same_number(right.doit(), gold.doit(), places)
    if is_number(given) and is_number(gold):
        return same_number(given.doit(), gold.doit(), places)
    return bool(
        verify(
            gold,
            given,
            float_rounding=places,
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
    )


def is_number(value: Any) -> bool:
    """Whether `value` is an expression without variables."""
    return isinstance(value, sympy.Expr) and not value.free_symbols and bool(value.is_number)


def same_number(one: Any, other: Any, places: int) -> bool:
    """Whether two evaluated numbers are the same; decimals may be rounded (`numbers.rounds_to`)."""
    exact, decimal = (exactly(one), exactly(other)), one.has(sympy.Float) or other.has(sympy.Float)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1] or (decimal and rounds_to(exact[0], exact[1], places))
    if not (one.is_finite and other.is_finite):
        return bool(one == other) and one is not sympy.nan and one is not sympy.zoo
    if decimal:
        return all(
            rounds_to(*parts, places) or parts[0] == parts[1]
            for parts in zip(computed(one), computed(other), strict=True)
        )
    if one == other:
        return True
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
