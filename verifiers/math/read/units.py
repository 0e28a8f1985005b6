"""Units of measurement behind a number: 25 cm is 0.25 m and is not 25 m.

| answer | reference | lenient | strict | because |
|---|---|---|---|---|
| 12 m | 12 cm | wrong | wrong | they are different lengths |
| 0.12 m | 12 cm | right | right | converted exactly |
| 12 | 12 cm | right | wrong | the question names the unit, mostly |
| 12 cm | 12 | right | wrong | the reference leaves it out, mostly |
| 12 m | 12 kg | wrong | wrong | they measure different things |
| 12 apples | 12 | right | right | what is counted is no unit |
| 12 pears | 12 apples | wrong | wrong | something else is counted |
| 12 apples | 12 cm | wrong | wrong | something is counted, and nothing measured |
| 12 dozens | 12 | unparsable | unparsable | the word may change the number |
| 12 % | 12 | wrong | wrong | a percent sign is a factor of 1/100, and no unit |

Only a small table of everyday units is converted, with the SI's prefixes; a unit is a product of powers, so `m/s` and
`km/h` follow from it. (The package pint was tried in its place: it takes 2.5 s to load and 0.5 ms a unit, reads `a` as
a year and `at` as an atmosphere, and knows no money.) Words behind a number that are in no table say what is counted
where they have a plural in them and no word that says anything about the number; all others make it a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from quintain.verifiers.math.read.numbers import SCALES
from quintain.verifiers.math.read.spelling import word_set

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its size in the base units of its dimension, and the powers of those."""

    size: Fraction
    dimension: Dimension

    @property
    def is_counted(self) -> bool:
        """Whether it is no unit of measurement, but says what is counted."""
        return any(base.startswith(COUNTED) for base, _ in self.dimension)


COUNTED: Final = "number of "
_PREFIXES: Final = (
    ("pico", "p", -12), ("nano", "n", -9), ("micro", "μ", -6), ("milli", "m", -3), ("centi", "c", -2),
    ("deci", "d", -1), ("kilo", "k", 3), ("mega", "M", 6), ("giga", "G", 9), ("tera", "T", 12),
)  # fmt: skip
_BARE: Final = word_set("km cm mm dm nm kg mg ms ml cl dl")
"""Of the symbols that two variables could be (`2 pm`, `3 ng`), those that are units without an upright font."""
_METRIC: Final = """
m meter metre : 1 m          | g gram : 1/1000 kg              | s sec second : 1 s
L l liter litre : 1/1000 m^3
N newton : 1 kg m s^-2       | J joule : 1 kg m^2 s^-2         | W watt : 1 kg m^2 s^-3    | Pa pascal : 1 kg m^-1 s^-2
Hz hertz : 1 s^-1            | !A amp ampere : 1 A             | !C coulomb : 1 A s        | V volt : 1 kg m^2 s^-3 A^-1
ohm Ω : 1 kg m^2 s^-3 A^-2   | !F farad : 1 A^2 s^4 kg^-1 m^-2 | !T tesla : 1 kg s^-2 A^-1 | mol mole : 1 mol
eV electronvolt : 1 eV       | cal calorie : 1 cal             | !B byte : 8 bit           | bit : 1 bit
"""
_OTHERS: Final = """
in inch inches : 254/10000 m | ft foot feet : 3048/10000 m | yd yard : 9144/10000 m | mi mile : 1609344/1000 m
furlong : 201168/1000 m      | lightyear : 9460730472580800 m | acre : 40468564224/10000000 m^2
ha hectare : 10000 m^2       | cc : 1/1000000 m^3          | gal gallon : 3785411784/1000000000000 m^3
quart : 946352946/1000000000000 m^3 | pint : 473176473/1000000000000 m^3 | cup : 2365882365/10000000000000 m^3
lb lbs pound : 45359237/100000000 kg | oz ounce : 45359237/1600000000 kg | stone stones : 635029318/100000000 kg
ton tons : 1 ton             | tonne : 1000 kg             | min minute : 60 s      | h hr hour : 3600 s
day : 86400 s                | week : 604800 s             | fortnight : 1209600 s  | month : 1 month
year yr : 12 month           | decade : 120 month          | century centuries : 1200 month
mph : 1609344/3600000 m s^-1 | kph kmh : 1000/3600 m s^-1  | knot : 1852/3600 m s^-1 | rpm : 1/60 rev s^-1
rev revolution : 1 rev       | degree deg : 1 degree       | rad radian : 1 radian  | gradian : 9/10 degree
K kelvin : 1 K               | celsius : 1 celsius         | fahrenheit : 1 fahrenheit
dollar USD US$ $ buck : 1 dollar | cent penny pennies : 1/100 dollar | nickel : 1/20 dollar | dime : 1/10 dollar
euro EUR € : 1 euro          | £ GBP : 1 £                 | pence : 1/100 £        | ¥ yen JPY : 1 yen
yuan RMB CNY : 1 yuan        | ₹ rupee INR Rs : 1 rupee    | peso : 1 peso          | franc : 1 franc
unit : 1
"""
"""`spellings : size dimension`, the prefixed ones apart. Behind a `!` is what is a unit in an upright font only:
`5 A` is five times A. What differs by place (a ton, a month's days) is converted to nothing."""


def _entries(table: str) -> Iterator[tuple[list[str], Fraction, Dimension]]:
    for entry in re.split(r"[|\n]", table):
        spellings, _, value = entry.partition(":")
        if value:
            size, *bases = value.split()
            powers = [base.partition("^") for base in bases]
            dimension = tuple(sorted((base, int(power or 1)) for base, _, power in powers))
            yield spellings.split(), Fraction(size), dimension


def _plurals(name: str) -> tuple[str, ...]:
    return (name, name + "s") if len(name.strip("!")) > 1 else (name,)


def _table() -> Iterator[tuple[str, Unit]]:
    for spellings, size, dimension in _entries(_METRIC):
        for name in spellings:
            bare = name.strip("!")
            yield from ((spelling, Unit(size, dimension)) for spelling in _plurals(name))
            for long, short, power in _PREFIXES:
                prefix = long if len(bare) > 2 and bare not in ("mol", "cal", "sec") else short
                prefixed = Unit(size * Fraction(10) ** power, dimension)
                mark = (
                    "!" if len(prefix + bare) == 2 and (prefix + bare).islower() and prefix + bare not in _BARE else ""
                )
                yield from ((mark + prefix + spelling, prefixed) for spelling in _plurals(bare))
    for spellings, size, dimension in _entries(_OTHERS):
        yield from ((spelling, Unit(size, dimension)) for name in spellings for spelling in _plurals(name))


UNITS: Final[Mapping[str, Unit]] = MappingProxyType(dict(_table()))

CURRENCIES: Final = "$€£¥₹"

_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)"
_TEXT = r"\\(?:text|mathrm|textrm|textnormal|mbox|textbf|rm|mathsf)\s*"
_BEFORE = re.compile(r"(?P<sign>-?)(?P<currency>US\$|Rs\.?(?![A-Za-z])|[$€£¥₹])\s*(?=[-\d.\\])")
_DEGREES = re.compile(
    r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z]))"
    rf"\s*(?:{_TEXT}\{{\s*(?P<upright>[CF])\s*\}}|(?P<scale>[CF])(?![A-Za-z]))?"
)
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|cis)")
_VALUE = r"(?:[\d)\]}!.]|\\pi)"
_UPRIGHT_TAIL = re.compile(
    rf"(?P<value>.*?{_VALUE})\s*(?P<unit>(?:(?:\\mu\s*[A-Za-z]{{1,3}}|\\mu|\\Omega|{_TEXT}\{{(?:[^{{}}]|\^\{{-?\d\}})*\}})\s*{_POWER}?\s*/?\s*)+)"
)
_TAIL = re.compile(
    rf"(?P<value>.*{_VALUE})"
    r"(?:(?P<gap>\s*)(?P<bare>[A-Za-z](?:[A-Za-z/\s.'·-]|\^\s*\{?-?\d\}?)*|[€£¥₹$])"
    r"|\s*\(\s*(?P<noted>[A-Za-z][A-Za-z '-]*)\s*\))"
)
_SCALE_WORD = re.compile(rf"(?:{'|'.join(SCALES)})\s+(?=[A-Za-z])")
_UPRIGHT = re.compile(rf"{_TEXT}\{{((?:[^{{}}]|\^\{{-?\d\}})*)\}}")
_COMPOUND = re.compile(r"\d+(?:\.\d+)?\s*[A-Za-z]+(?:\s*(?:,|and|,\s*and)?\s*\d+(?:\.\d+)?\s*[A-Za-z]+)+")
_COMPOUND_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_FEET = re.compile(r"(\d+)\s*'\s*(\d+(?:\.\d+)?)\s*(?:\"|'')?")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*[.,]?")
_SAYING: Final = word_set(
    "about above almost alternatively and any approximately base basis below between but choose cubed divided dozen "
    "either else except false if incorrect infinity is isn't least less like maybe minus mod modulo more most negative "
    "no none nor not or otherwise over perhaps plus possibly power probably repeated roughly squared than "
    "through times to unless until versus vs when where without wrong percent also "
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety half hundred thousand million billion "
    "trillion lakh crore "
    "dozens gross grosses pairs couples trios tens lots heaps thirds lies scores "
    "halves quarters roots hundreds thousands millions billions trillions lakhs crores others "
    "sometimes always besides percents percentages works fails holds exists applies differs lacks misses exceeds means"
)
"""Words that change what the number before them says, or name another."""
_PLURAL = re.compile(
    r"[a-z'-]*[a-rt-z](?<!th)(?<!ward)(?<!wise)(?<![iu])s|people|children|(?:[a-z]+)?men|feet|mice|geese|teeth|fish|sheep|deer"
)
"""What is counted is a plural: apples, and no upwards, tenths or dozens."""
_SHORT: Final = word_set("a of in at by on")
MAX_COUNTED_WORDS: Final = 6
_BETWEEN = re.compile(r"\\[,;:! ]|\\cdot(?![A-Za-z])|[·~*]|-(?=[A-Za-z])")
"""What stands between the factors of a unit: a thin blank, a dot."""
_FACTOR = re.compile(r"(US\$|[A-Za-zΩμ$€£¥₹]+)\.?(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?")


def split_unit(text: str, *, attached: bool = False, noted: bool = False) -> tuple[str, Unit | None]:
    """`text` (unwrapped) without the unit behind it, and the unit; what is counted is one of its own.

    `attached`: whether a single letter right behind the number is a unit too, as in 5m; else it may be a variable.
    `noted`: whether any words in brackets say what is counted, as in a reference `1 (shape)`.
    """
    if (before := _BEFORE.match(text)) is not None:
        number, _, rest = (before["sign"] + text[before.end() :]).partition(" per ")
        unit = (
            parse_unit(f"{before['currency'].rstrip('.')} per {rest}")
            if rest
            else UNITS[before["currency"].rstrip(".")]
        )
        return (number, unit) if unit is not None else (text, None)
    if _FEET.fullmatch(text) or _COMPOUND.fullmatch(text):
        return _compound(text)
    if ("circ" in text or "degree" in text) and not _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(_degrees, text).strip()
    if (upright := _UPRIGHT_TAIL.fullmatch(text)) is not None:
        inside = _UPRIGHT.sub(r" \1 ", upright["unit"]).replace(r"\mu", "μ").replace(r"\Omega", "Ω")
        inside = re.sub(r"μ\s+", "μ", re.sub(r"\s+(?=\^|/)", "", inside))
        unit = parse_unit(inside, upright=True) or _counted(inside)
        return (text, None) if unit is None else (upright["value"].strip(), unit)
    match = _TAIL.fullmatch(text)
    if match is None:
        return text, None
    value = match["value"].strip()
    if match["noted"]:
        unit = parse_unit(match["noted"]) or (counted if noted else _counted)(match["noted"])
        return (text, None) if unit is None else (value, unit)
    bare = match["bare"].strip()
    if (scale := _SCALE_WORD.match(bare)) is not None:  # 1.5 million dollars
        value, bare = f"{value} {scale[0].strip()}", bare[scale.end() :]
    if len(re.sub(r"[^A-Za-z].*", "", bare)) == 1 and bare not in CURRENCIES and not match["gap"] and not attached:
        return text, None  # 5m may be five times m
    unit = parse_unit(bare) or (_counted(bare) if match["gap"] else None)
    return (text, None) if unit is None else (value, unit)


def _degrees(found: re.Match[str]) -> str:
    scale = found["scale"] or found["upright"]
    return {"C": " celsius ", "F": " fahrenheit "}.get(scale, " degrees ")


def _compound(text: str) -> tuple[str, Unit | None]:
    """`2 hours 30 minutes` and `5'6"`, in the unit that comes first."""
    feet = _FEET.fullmatch(text)
    pairs = (
        [(feet[1], "feet"), (feet[2], "inches")] if feet else [part.groups() for part in _COMPOUND_PART.finditer(text)]
    )
    units = [parse_unit(name) for _, name in pairs]
    first = units[0]
    if first is None or not first.dimension:
        return text, None
    total = Fraction(0)
    for (amount, _), unit in zip(pairs, units, strict=True):
        if unit is None or unit.dimension != first.dimension:
            return text, None
        total += Fraction(amount) * unit.size / first.size
    return str(total), first


def _counted(text: str) -> Unit | None:
    """What `text`, behind a number, says is counted ("apples", "people in all"), if it says nothing about how many."""
    words = text.replace("(", " ").replace(")", " ").rstrip(". ").lower().split()
    if not words or len(words) > MAX_COUNTED_WORDS or any(len(word) < 3 and word not in _SHORT for word in words):
        return None
    if not all(_WORD.fullmatch(word) and word not in _SAYING for word in words):
        return None
    return counted(text) if any(_PLURAL.fullmatch(word.rstrip(".,")) for word in words) else None


def counted(text: str) -> Unit:
    """The unit of what is counted: the same words, in singular or plural, and no others."""
    name = " ".join(word.removesuffix("s") for word in text.lower().strip(" .").split())
    return Unit(Fraction(1), ((COUNTED + name, 1),))


def parse_unit(text: str, *, upright: bool = False) -> Unit | None:
    """The unit that `text` ("km/h", "square meters", "m s^-1") names, or None."""
    text = re.sub(r"\s+per\s+|\s*/\s*", " / ", _BETWEEN.sub(" ", text).strip())
    size, powers = Fraction(1), dict[str, int]()
    sign, next_power = 1, 1
    words = text.replace("squared", "^2").replace("cubed", "^3").replace("light year", "lightyear")
    for word in re.sub(r"\s*\^", "^", words).split():
        if word == "/":
            sign = -1
        elif word in ("square", "sq", "sq."):
            next_power = 2
        elif word in ("cubic", "cu", "cu."):
            next_power = 3
        else:
            factor = _FACTOR.fullmatch(word)
            unit = _named(factor[1], upright=upright or len(powers) > 0) if factor else None
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


def _named(word: str, *, upright: bool) -> Unit | None:
    found = UNITS.get(word) or (UNITS.get(word.lower()) if len(word) > 2 else None)
    return found or (UNITS.get("!" + word) if upright else None)


def conversion(answer: Unit | None, reference: Unit | None, *, strict: bool = False) -> Fraction | None:
    """What to multiply the answer's number by to compare it with the reference's.

    None where the two measure different things, or, if `strict`, only one of them has a unit; else, where one has
    none, 1.
    """
    sides = [side for side in (answer, reference) if side is not None and side.dimension]
    if strict and sum(not side.is_counted for side in sides) == 1:
        return None
    if answer is None or reference is None or len(sides) < 2:
        return Fraction(1)
    if answer.dimension != reference.dimension:
        return None
    return answer.size / reference.size
