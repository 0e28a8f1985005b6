"""Units of measurement behind a number: 25 cm is 0.25 m and is not 25 m.

| answer | reference | lenient | strict | because |
|---|---|---|---|---|
| 12 m | 12 cm | wrong | wrong | they are different lengths |
| 0.12 m | 12 cm | right | right | converted exactly |
| 12 | 12 cm | right | wrong | the question names the unit, mostly |
| 12 cm | 12 | right | wrong | the reference leaves it out, mostly |
| 12 m | 12 kg | wrong | wrong | they measure different things |
| 12 apples | 12 | right | right | what is counted is no unit |
| 12 % | 12 | wrong | wrong | a percent sign is a factor of 1/100, and no unit |

Only a small table of everyday units is converted; a unit is a product of powers, so `m/s` and `km/h` follow
from it. Words behind a number that are in no table say what is counted and are dropped, unless they say anything
about the number ("or so", "wrong", "thousand"); single letters are mathematics and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from quintain.verifiers.math.read.spelling import word_set

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
        ("yuan RMB CNY", "yuan", 1, Fraction(1)),
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
_TEXT = r"\\(?:text|mathrm|textrm|textnormal|mbox|textbf|rm)\s*"
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\s*\\degree(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_TAIL = re.compile(
    rf"""(?P<value>.*(?:[\d)\]}}!]|\\pi))
         (?P<unit> \s*(?P<text>{_TEXT}\{{\s*(?P<inside>(?:[^{{}}]|\^\{{-?\d\}})*?)\s*\}})(?P<power>{_POWER}?)
                 | (?P<gap>\s*)(?P<bare>[A-Za-z][A-Za-z/^{{}}\d\s.-]*) )""",
    re.VERBOSE,
)
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*[.,]?")
_SAYING: Final = word_set(
    "about above almost alternatively and any approximately base below between but choose cubed divided dozen either "
    "else except false if incorrect infinity is isn't least less like maybe minus mod modulo more most negative no "
    "none nor not or otherwise over perhaps plus possibly power probably repeated repeating root roughly squared than "
    "through times to unless until versus vs when where without wrong "
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety half halves third thirds quarter quarters "
    "hundred hundreds thousand thousands million millions billion billions trillion trillions percent"
)
"""Words that change what the number before them says, or name another."""
_SHORT: Final = word_set("a of in at by on")
_NAMES: Final = word_set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt cbrt abs gcd lcm max min lim det pi inf "
    "alpha beta gamma delta epsilon theta lambda sigma omega phi rho tau"
)
MAX_COUNTED_WORDS: Final = 6
_BETWEEN = re.compile(r"\\[,;:! ]|\\cdot(?![A-Za-z])|[·~]")
"""What stands between the factors of a unit: a thin blank, a dot."""
_FACTOR = re.compile(r"([A-Za-z$€£¥₹]+)\.?(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?")


def split_unit(text: str, *, attached: bool = False) -> tuple[str, Unit | None]:
    """`text` (unwrapped) without the unit behind it, and the unit if the table has it.

    `attached`: whether a single letter right behind the number is a unit too, as in 5m; else it may be a variable.
    """
    if text and text[0] in CURRENCIES:
        return text[1:].lstrip(), UNITS[text[0]]
    if text[-1:] in CURRENCIES and text[:-1].rstrip()[-1:].isdigit():
        return text[:-1].rstrip(), UNITS[text[-1]]
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
        return (value, unit) if unit is not None or is_counted(match["inside"] + match["power"]) else (text, None)
    bare = match["bare"].strip()
    if len(re.sub(r"[^A-Za-z].*", "", bare)) == 1 and not match["gap"] and not attached:
        return text, None  # 5m may be five times m
    unit = parse_unit(bare)
    if unit is None and not (match["gap"] and is_counted(bare)):
        return text, None
    return value, unit


def is_counted(text: str) -> bool:
    """Whether `text`, behind a number, says what is counted ("apples", "people in all") and nothing about how many."""
    words = text.replace("(", " ").replace(")", " ").rstrip(". ").lower().split()
    if len(words) > MAX_COUNTED_WORDS or any(len(word) < 3 and word not in _SHORT for word in words):
        return False
    return all(_WORD.fullmatch(word) and word not in _SAYING and word not in _NAMES for word in words)


def parse_unit(text: str) -> Unit | None:
    """The unit that `text` ("km/h", "square meters", "m s^-1") names, or None."""
    text = re.sub(r"\s+per\s+|\s*/\s*", " / ", _BETWEEN.sub(" ", text).strip())
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


def conversion(answer: Unit | None, reference: Unit | None, *, strict: bool = False) -> Fraction | None:
    """What to multiply the answer's number by to compare it with the reference's.

    None where the two measure different things, or, if `strict`, only one of them has a unit; else, where one has
    none, 1.
    """
    missing = [side is None or not side.dimension for side in (answer, reference)]
    if answer is None or reference is None or any(missing):
        return None if strict and not all(missing) else Fraction(1)
    if answer.dimension != reference.dimension:
        return None
    return answer.size / reference.size
