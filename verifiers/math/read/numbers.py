"""Plain numbers, read and compared exactly: what most answers are, decided in microseconds.

A plain number is an integer, a decimal, a fraction, a mixed number or a repeating decimal, with an optional
sign, thousands separators, power of ten and percent sign. What always holds:
- a value is exact, whatever its size: `1e999999999` and numbers of a hundred thousand digits are compared
  without ever being written out, so nothing here takes more than linear time;
- what is not certainly a plain number is not one: the caller asks somebody who knows more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final, NamedTuple

LIMIT_DIGITS: Final = 1_000
"""Beyond so many digits, or powers of ten, a number is kept as its digits and compared as such."""

SCALES: Final[Mapping[str, int]] = MappingProxyType(
    {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
)
"""Words that stand for a power of ten."""

_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_POWER = (
    r"(?:[eE]\s*[+-]?\d+|\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*(?:\^|\*\*)\s*"
    r"(?:\{\s*[+-]?\s*\d+\s*\}|\(\s*[+-]?\d+\s*\)|[+-]?\d+))"
)
_NUMBER = rf"(?:[+-]?\s*{_DECIMAL}{_POWER}?)"
_REPEAT = r"\\(?:overline|bar|dot)\s*\{?\s*(?P<repeat>\d+)\s*\}?"

_PLAIN = re.compile(
    rf"""\s*(?P<outer>[+-]?)\s*(?P<open>\()?\s*(?:
        (?P<number>{_NUMBER})
      | (?P<spaced>[+-]?\d{{1,3}}(?:\ \d{{3}})+(?:\.\d+)?)
      | (?P<repeating>[+-]?\d*\.\d*){_REPEAT}
      | (?P<above>{_NUMBER})\s*(?:/|out\ of|in)\s*(?P<below>{_NUMBER})
      | (?P<sign>[+-]?)\s*(?:(?P<whole>\d{{1,18}})\s*)?\\frac\s*(?:
            \{{\s*(?P<top>{_NUMBER})\s*\}}\s*\{{\s*(?P<bottom>{_NUMBER})\s*\}} | (?P<digits>\d\s*\d) )
      | (?P<msign>[+-]?)\s*(?P<mwhole>\d{{1,18}}|\d{{1,3}}(?:\ \d{{3}}){{1,5}})\s+
            (?P<mtop>\d{{1,18}})\s*/\s*(?P<mbottom>\d{{1,18}})
    )\s*(?(open)\))\s*(?:(?P<scale>hundred|thousand|million|billion|trillion)\b)?
    \s*(?P<percent>%|percent(?:age)?\b|per\ cent\b|pct\b)?\s*""",
    re.VERBOSE | re.ASCII,
)
_INTEGER = re.compile(r"-?\d{1,30}", re.ASCII)
_COMMA = re.compile(
    r"[+-]?\s*(?:0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?:\s*\\(?:cdot|times)\s*10\s*\^\s*\{?-?\d+\}?)?", re.ASCII
)  # 1,234 is 1234
_POWER_DIGITS = re.compile(r"(?:[eE]\s*|10\s*(?:\^|\*\*)\s*[{(]?\s*)([+-]?)\s*(\d+)\s*[})]?$", re.ASCII)


class Digits(NamedTuple):
    """A decimal beyond the limit: ±digits·10^exponent, the digits without zeros at either end."""

    negative: bool
    digits: str
    exponent: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain number and whether it was written as a decimal, which may have been rounded."""

    value: Fraction | Digits
    decimal: bool

    def times(self, factor: Fraction) -> Plain | None:
        """This number times `factor`, or None where it is too long for that."""
        if factor == 1:
            return self
        return None if isinstance(self.value, Digits) else Plain(self.value * factor, self.decimal)


def parse_plain(text: str) -> Plain | None:
    """The plain number that `text` is, from end to end, or None."""
    if _INTEGER.fullmatch(text):
        return Plain(Fraction(int(text)), False)
    match = _PLAIN.fullmatch(" ".join(text.split()))  # single blanks: the pattern is linear on those
    if match is None:
        return None
    value = _value(match)
    if value is None:
        return None
    shift = SCALES.get(match["scale"], 0) - (2 if match["percent"] else 0)
    is_negated = match["outer"] == "-"
    if isinstance(value, Digits):
        value = Digits(value.negative is not is_negated, value.digits, value.exponent + shift)
    else:
        value *= Fraction(10) ** shift * (-1 if is_negated else 1)
    written = match["number"]
    return Plain(value, written is not None and not written.isdecimal())


def within(one: Plain, reference: Plain, rel_tol: Fraction | None, abs_tol: Fraction | None) -> bool:
    """`is_within` for plain numbers; what is beyond the limit is equal or not."""
    if isinstance(one.value, Digits) or isinstance(reference.value, Digits):
        return one.value == reference.value
    return is_within(one.value, reference.value, rel_tol, abs_tol)


def is_within(one: Fraction, reference: Fraction, rel_tol: Fraction | None, abs_tol: Fraction | None) -> bool:
    """Whether `one` is within max(rel_tol·|reference|, abs_tol) of the reference."""
    return abs(one - reference) <= max((rel_tol or 0) * abs(reference), abs_tol or 0)


def decimal_comma(text: str) -> str | None:
    """`text` with a point, where it is a number with a decimal comma and nothing else could be meant by it."""
    if _COMMA.fullmatch(text.strip()) is None or text.strip().rpartition(",")[2].strip("0") == "":  # 5,0 is two numbers
        return None
    return text.replace(",", ".")


def same(one: Plain, other: Plain, places: int) -> bool:
    """Whether two plain numbers are the same, or one is the other rounded to `places` decimal places.

    A fraction is taken to differ from any decimal beyond the limit.
    """
    if isinstance(one.value, Digits) or isinstance(other.value, Digits):
        return one.value == other.value
    if one.value == other.value:
        return True
    return (one.decimal or other.decimal) and rounds_to(one.value, other.value, places)


def rounds_to(one: Fraction, other: Fraction, places: int) -> bool:
    """Whether two different numbers, neither of them whole, agree to `places` decimal places.

    Also to as many significant digits, without which six decimal places would say nothing about 1e-7, and never
    where `places` is 0.
    """
    if places == 0 or one.denominator == 1 or other.denominator == 1:
        return False
    error = 2 * abs(one - other) * 10**places
    return bool(error <= 1 and error <= 10 * max(abs(one), abs(other)))


def _value(match: re.Match[str]) -> Fraction | Digits | None:
    if match["number"] is not None:
        return _number(match["number"])
    if match["spaced"] is not None:
        return _number(match["spaced"].replace(" ", ""))
    if match["repeating"] is not None:
        return _repeating(match["repeating"], match["repeat"])
    if match["above"] is not None:
        return _ratio(match["above"], match["below"])
    if match["mwhole"] is not None:
        return _mixed(match["msign"], match["mwhole"].replace(" ", ""), _ratio(match["mtop"], match["mbottom"]))
    top, bottom = match["top"], match["bottom"]
    if match["digits"] is not None:  # \frac12
        top, bottom = match["digits"][0], match["digits"][-1]
    ratio = _ratio(top, bottom)
    if match["whole"] is not None:
        return _mixed(match["sign"], match["whole"], ratio)
    return -ratio if ratio is not None and match["sign"] == "-" else ratio


def _number(text: str) -> Fraction | Digits | None:
    """The value of a sign, digits with or without point and commas, and a power of ten."""
    exponent = 0
    if not text.isdecimal():
        power = _POWER_DIGITS.search(text)
        if power is not None:
            if len(power[2]) > LIMIT_DIGITS:
                return None
            exponent = int(power[1] + power[2])
            text = re.split(r"[eE\\*xX]", text, maxsplit=1)[0]
        text = text.replace(",", "")
    negative = text.startswith("-")
    whole, _, part = text.lstrip("+- ").strip().partition(".")
    digits = (whole + part).lstrip("0")
    exponent -= len(part)
    significant = digits.rstrip("0")
    exponent += len(digits) - len(significant)
    if not significant:
        return Fraction(0)
    if len(significant) > LIMIT_DIGITS or abs(exponent) > LIMIT_DIGITS:
        return Digits(negative, significant, exponent)
    magnitude = int(significant)
    value = Fraction(magnitude * 10**exponent) if exponent >= 0 else Fraction(magnitude, 10**-exponent)
    return -value if negative else value


def _ratio(top: str, bottom: str) -> Fraction | None:
    above, below = _number(top), _number(bottom)
    if not isinstance(above, Fraction) or not isinstance(below, Fraction) or below == 0:
        return None
    return above / below


def _mixed(sign: str, whole: str, ratio: Fraction | None) -> Fraction | None:
    if ratio is None or not 0 < ratio < 1:  # 2\frac{3}{2} is a product to some and a sum to others
        return None
    value = int(whole) + ratio
    return -value if sign == "-" else value


def _repeating(start: str, repeat: str) -> Fraction | None:
    if len(start) + len(repeat) > LIMIT_DIGITS:
        return None
    negative = start.startswith("-")
    whole, _, part = start.lstrip("+-").partition(".")
    value = Fraction(int(whole + part or "0"), 10 ** len(part))
    value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(part))
    return -value if negative else value
