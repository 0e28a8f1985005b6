"""What a reference may be, and what it asks for: a number, a text, or a mapping with tolerances and a unit.

    25        "\\\\frac{1}{2}"        "5 apples"        "He pays 1000 + 234.\\n#### 1,234"
    {"answer": "9.81", "rel_tol": 0.01, "abs_tol": 0.005, "unit": "m/s^2"}

`answer` is a number or a text. `rel_tol` in [0, 1) and `abs_tol` ≥ 0: where one of them is given, a number is right
within max(rel_tol·|reference|, abs_tol), also within a tuple or a set; whole numbers too. `unit`: what the answer is
measured in, where it is not written behind the number; a unit of the table in `units`.

A text is read whole or not at all: it parses to the end, or it is text, and nothing of it is dropped. Which part of it
is the reference says the option `reference`; by itself, a box and a `####` do: they are how data sets mark the end of a
worked solution. A box that is never closed, at the very end of a reference, is taken to end with it. What is no
reference gives a reason why, which becomes the outcome `bad_reference`: nobody's answer is wrong because of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from quintain.nearest import one_of
from quintain.verifiers.math.find.extract import HASHES, boxes_of, formulas_of, open_box
from quintain.verifiers.math.read.lexer import MAX_CHARS
from quintain.verifiers.math.read.numbers import parse_plain
from quintain.verifiers.math.read.spelling import grouped, unwrapped
from quintain.verifiers.math.read.units import parse_unit, split_unit

ReferenceMode = Literal["auto", "whole", "last_box", "last_formula"]

FIELDS: Final = ("answer", "rel_tol", "abs_tol", "unit")


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference: its mathematics (or words), unwrapped; `groups`: its braces only group; the item's tolerances."""

    text: str
    groups: bool = False
    rel_tol: Fraction | None = None
    abs_tol: Fraction | None = None


def read_reference(reference: Any, mode: ReferenceMode = "auto") -> Reference | str:
    """What `reference` asks for, or the reason why it is of no use."""
    if not isinstance(reference, Mapping):
        found = _text(reference, mode)
        return Reference(*found) if isinstance(found, tuple) else found
    for name in reference:
        if name not in FIELDS:
            return f"a reference has no field {str(name)[:50]!r}{one_of(str(name)[:50], FIELDS)}"
    if "answer" not in reference:
        return "a reference that is an object has the field 'answer'"
    found = _text(reference["answer"], mode)
    if isinstance(found, str):
        return found
    tolerances = []
    for name, limit in (("rel_tol", 1.0), ("abs_tol", math.inf)):
        value = reference.get(name)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < limit
            or (isinstance(value, int) and value.bit_length() > 4_000)
        ):
            return f"{name} is a number from 0{' to below 1' if limit == 1.0 else ', finite'}, not {_shown(value)}"
        tolerances.append(None if value is None else Fraction(repr(value)))
    text, groups = found
    unit = reference.get("unit")
    if unit is not None:
        if not isinstance(unit, str) or parse_unit(unit) is None:
            return f"unit is a unit of measurement such as 'cm' or 'm/s^2', not {unit!r:.50}"
        if split_unit(text)[1] is not None:
            return f"a reference has its unit in one place: {text!r:.100} has one, and the field unit says {unit!r}"
        text = rf"{text} \text{{{unit}}}"
    return Reference(text, groups, *tolerances)


def _shown(value: object) -> str:
    """`value` for a message: an integer of thousands of digits is not even written out."""
    return "a number this large" if isinstance(value, int) and value.bit_length() > 4_000 else f"{value!r:.50}"


def _text(reference: Any, mode: ReferenceMode) -> tuple[str, bool] | str:
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        return f"a reference is a finite number, a text or an object with these, not this {type(reference).__name__}"
    try:
        text = str(reference)
    except ValueError:
        return "a reference that is an integer has at most 4,300 digits: write it as a text"
    groups = grouped(text)
    if mode in ("auto", "last_box"):
        box = boxes_of(text) or open_box(text)
        if box is not None:
            text, groups = box, True
        elif mode == "last_box":
            return f"the option reference is last_box, and there is no \\boxed{{}} in {text!r:.200}"
        elif HASHES in text:
            text = text.rpartition(HASHES)[2]
    elif mode == "last_formula":
        formulas = formulas_of(text)
        if not formulas:
            return f"the option reference is last_formula, and there is no $…$ in {text!r:.200}"
        text, groups = formulas[-1], True
    text = unwrapped(text)
    if not text or text in ("nan", "inf", "-inf"):
        return f"a reference is a finite number or a text that says something, not {reference!r:.200}"
    if parse_plain(text) is None and len(text) > MAX_CHARS:
        return f"a reference has at most {MAX_CHARS} characters, this has {len(text)}"
    return text, groups
