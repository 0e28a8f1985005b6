"""Units of measurement behind a number: 25 cm is 0.25 m, is not 25 m, and is 25 where the other side has no
unit.

Only a small table of everyday units is converted; a unit is a product of powers, so `m/s` and `km/h` follow
from it. Words in `\\text{}` that are in no table say what is counted and are dropped; bare letters that are
in no table are mathematics and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its size in the base units of its dimension, and the powers of those."""

    size: Fraction
    dimension: Dimension


def _table() -> Iterator[tuple[str, str, int, Fraction]]:
    """(spelling, base, power, size in bases) of every unit."""
    meter, kilogram, second, litre = Fraction(1), Fraction(1), Fraction(1), Fraction(1, 1000)
    inch, pound = Fraction(254, 10_000) * meter, Fraction(45_359_237, 100_000_000) * kilogram
    for spellings, base, power, size in (
        ("m meter meters metre metres", "m", 1, meter),
        ("km kilometer kilometers kilometre kilometres", "m", 1, 1000 * meter),
        ("cm centimeter centimeters centimetre centimetres", "m", 1, meter / 100),
        ("mm millimeter millimeters millimetre millimetres", "m", 1, meter / 1000),
        ("in inch inches", "m", 1, inch),
        ("ft foot feet", "m", 1, 12 * inch),
        ("yd yard yards", "m", 1, 36 * inch),
        ("mi mile miles", "m", 1, 63_360 * inch),
        ("g gram grams", "kg", 1, kilogram / 1000),
        ("kg kilogram kilograms", "kg", 1, kilogram),
        ("mg milligram milligrams", "kg", 1, kilogram / 1_000_000),
        ("lb lbs pound pounds", "kg", 1, pound),
        ("oz ounce ounces", "kg", 1, pound / 16),
        ("s sec secs second seconds", "s", 1, second),
        ("ms millisecond milliseconds", "s", 1, second / 1000),
        ("min mins minute minutes", "s", 1, 60 * second),
        ("h hr hrs hour hours", "s", 1, 3600 * second),
        ("day days", "s", 1, 86_400 * second),
        ("week weeks", "s", 1, 604_800 * second),
        ("month months", "month", 1, Fraction(1)),
        ("year years", "month", 1, Fraction(12)),
        ("L l liter liters litre litres", "m", 3, litre),
        ("mL ml milliliter milliliters millilitre millilitres", "m", 3, litre / 1000),
        ("mph", "mph", 1, Fraction(1)),
        ("degree degrees deg", "degree", 1, Fraction(1)),
        ("radian radians rad", "radian", 1, Fraction(1)),
        ("dollar dollars USD $", "dollar", 1, Fraction(1)),
        ("cent cents", "dollar", 1, Fraction(1, 100)),
        ("euro euros EUR €", "euro", 1, Fraction(1)),
        ("£ GBP", "£", 1, Fraction(1)),
        ("¥ yen JPY", "yen", 1, Fraction(1)),
        ("₹ rupee rupees INR", "rupee", 1, Fraction(1)),
        ("K kelvin", "K", 1, Fraction(1)),
        ("N newton newtons", "N", 1, Fraction(1)),
        ("J joule joules", "J", 1, Fraction(1)),
        ("W watt watts", "W", 1, Fraction(1)),
        ("V volt volts", "V", 1, Fraction(1)),
        ("Hz hertz", "Hz", 1, Fraction(1)),
        ("mol moles", "mol", 1, Fraction(1)),
        ("unit units", "", 0, Fraction(1)),
    ):
        for spelling in spellings.split():
            yield spelling, base, power, size


UNITS: Final[Mapping[str, Unit]] = MappingProxyType(
    {spelling: Unit(size, ((base, power),) if power else ()) for spelling, base, power, size in _table()}
)

CURRENCIES: Final = "$€£¥₹"

_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)"
_TEXT = r"\\(?:text|mathrm|textrm|mbox|textbf|rm)\s*"
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\s*\\degree(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_TAIL = re.compile(
    rf"""(?P<value>.*(?:[\d)\]}}!]|\\pi))
         (?P<unit> \s*(?P<text>{_TEXT}\{{\s*(?P<inside>[^{{}}]*?)\s*\}})(?P<power>{_POWER}?)
                 | (?P<gap>\s*)(?P<bare>[A-Za-z][A-Za-z/^{{}}\d\s.-]*) )""",
    re.VERBOSE,
)
_FACTOR = re.compile(r"([A-Za-z$€£¥₹]+)\.?(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?")


def split_unit(text: str) -> tuple[str, Unit | None]:
    """`text` (unwrapped) without the unit behind it, and the unit if the table has it."""
    if text and text[0] in CURRENCIES:
        return text[1:].lstrip(), UNITS[text[0]]
    if text[:2] in ("-$", "-€", "-£"):
        return "-" + text[2:].lstrip(), UNITS[text[1]]
    if not _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(" degrees ", text).strip()
    match = _TAIL.fullmatch(text)
    if match is None:
        return text, None
    value = match["value"].strip()
    if match["text"]:
        unit = parse_unit(match["inside"] + match["power"])
        return (value, unit)
    bare = match["bare"].strip()
    if len(re.sub(r"[^A-Za-z].*", "", bare)) == 1 and not match["gap"]:
        return text, None  # 5m may be five times m
    unit = parse_unit(bare)
    return (text, None) if unit is None else (value, unit)


def parse_unit(text: str) -> Unit | None:
    """The unit that `text` ("km/h", "square meters", "m s^-1") names, or None."""
    text = re.sub(r"\s+per\s+|\s*/\s*", " / ", text.strip())
    size, powers = Fraction(1), dict[str, int]()
    sign, next_power = 1, 1
    words = text.replace("squared", "^2").replace("cubed", "^3")
    for word in re.sub(r"\s*\^", "^", words).split():
        if word == "/":
            sign = -1
        elif word in ("square", "sq", "sq."):
            next_power = 2
        elif word in ("cubic", "cu", "cu."):
            next_power = 3
        else:
            factor = _FACTOR.fullmatch(word)
            unit = UNITS.get(factor[1]) or UNITS.get(factor[1].lower()) if factor else None
            if factor is None or unit is None:
                return None
            power = sign * next_power * int(factor[2] or 1)
            size *= unit.size**power
            for base, exponent in unit.dimension:
                powers[base] = powers.get(base, 0) + exponent * power
            sign, next_power = 1, 1
    if (sign, next_power) != (1, 1) or not words.strip():  # "km/" and "square" wait for something
        return None
    return Unit(size, tuple(sorted((base, power) for base, power in powers.items() if power)))


def conversion(answer: Unit | None, reference: Unit | None) -> Fraction | None:
    """What to multiply the answer's number by to compare it with the reference's.

    1 where one side has no unit; None where the two measure different things.
    """
    if answer is None or reference is None or not answer.dimension or not reference.dimension:
        return Fraction(1)
    if answer.dimension != reference.dimension:
        return None
    return answer.size / reference.size
