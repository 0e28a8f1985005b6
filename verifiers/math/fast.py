"""The fast path: decide what can be decided without computer algebra, in this process, and exactly.

`decide` gives a verdict, or the question that only math-verify can answer. It decides: whatever is missing or
too long, plain numbers with units on both sides, texts, and answers spelled like the reference. It never
guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.math.extract import HASHES, extract, is_mathematics, last_box, mathematics_in
from quintain.verifiers.math.numbers import Plain, parse_plain, same
from quintain.verifiers.math.options import MathOptions
from quintain.verifiers.math.text import comparable, plain_spelling, unwrapped
from quintain.verifiers.math.units import Unit, conversion, split_unit

MAX_MATHEMATICS_CHARS: Final = 4_000
"""What is longer and no plain number is not sent to a computer algebra system."""
SHOWN_CHARS: Final = 200

_NUMERIC = re.compile(r"(?:[\d\s.,+\-*/^(){}%]|\\(?:times|cdot|div|frac|sqrt|pm)(?![A-Za-z]))+", re.ASCII)
_POWER_OF_TEN = re.compile(r"(?:\\times|\\cdot|\*|[xX])\s*10\s*(?=\^|\*\*)|(?<=\d)[eE][+-]?(?=\d)|\*\*")
_BINARY = re.compile(
    r"[\d)\]}%!]\s*(?:[+*-]|\\times|\\cdot|\\div)\s*[-+]?\s*[\d.({\\]|\d\s+\d"  # 12 13 is read as 12 + 13
)


@dataclass(frozen=True, slots=True)
class Expression:
    """One side of a comparison: its text without its unit, the unit, and its value if a plain number."""

    text: str
    unit: Unit | None
    plain: Plain | None


@dataclass(frozen=True, slots=True)
class Question:
    """What the fast path leaves open: is `answer` times `factor` the same as `reference`?"""

    answer: str
    reference: str
    factor: Fraction
    detail: dict[str, Any]


def decide(answer: str, reference: Any, options: MathOptions) -> Verdict | Question:
    """The verdict on `answer`, or what is left to ask."""
    expected = reference_text(reference)
    if expected is None:
        return Verdict.failed(
            Outcome.BAD_REFERENCE,
            "a reference is a finite number or a text that says something, not "
            + (_shown(repr(reference)) if isinstance(reference, (str, float)) else f"this {type(reference).__name__}"),
        )
    found = extract(answer, options.extraction)
    if found is None:
        return _unparsable("there is no answer in the text")
    detail: dict[str, Any] = {"answer": _shown(found.text), "rule": found.rule}
    right, given = expression(expected), expression(found.text)
    if right.plain is None and len(expected) > MAX_MATHEMATICS_CHARS:
        return Verdict.failed(
            Outcome.BAD_REFERENCE,
            f"a reference has at most {MAX_MATHEMATICS_CHARS} characters, this has {len(expected)}",
        )
    factor = conversion(given.unit, right.unit)
    if factor is None:
        return _scored(False, detail, reason="the units measure different things")
    if right.plain is not None:
        return _against_number(given, right, factor, options, detail)
    if comparable(given.text) == comparable(right.text) and factor == 1:
        return _scored(True, detail)
    if len(given.text) > MAX_MATHEMATICS_CHARS:
        return _unparsable("the answer is too long", **detail)
    if not is_mathematics(right.text):
        return _scored(_words(given.text) == _words(right.text), detail)
    if not is_mathematics(given.text):
        return _unparsable("the answer is no mathematics", **detail)
    return Question(given.text, right.text, factor, detail)


def reference_text(reference: Any) -> str | None:
    """The mathematics of `reference`, or its words where it has none; None where it is of no use.

    It is what is in its box or behind its `####` if it has one, and of "5 apples" it is the 5.
    """
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        return None
    try:
        text = str(reference)
    except ValueError:  # an integer with more digits than Python writes out
        return None
    box = last_box(text)
    if box is not None:
        text = box
    elif HASHES in text:
        text = text.rpartition(HASHES)[2]
    text = unwrapped(text)
    if parse_plain(text) is None and len(text) <= MAX_MATHEMATICS_CHARS and not is_mathematics(text):
        runs = mathematics_in(text)
        text = unwrapped(runs[0]) if len(runs) == 1 else text
    return None if not text or text in ("nan", "inf", "-inf") else text


def expression(text: str) -> Expression:
    """`text`, unwrapped already, taken apart."""
    plain = parse_plain(text)
    if plain is not None or len(text) > MAX_MATHEMATICS_CHARS:
        return Expression(text, None, plain)
    value, unit = split_unit(text)
    value = unwrapped(value)
    return Expression(value, unit, parse_plain(value))


def _against_number(
    given: Expression, right: Expression, factor: Fraction, options: MathOptions, detail: dict[str, Any]
) -> Verdict | Question:
    assert right.plain is not None
    if given.plain is not None:
        return _compare(given.plain, right.plain, factor, options, detail)
    if len(given.text) > MAX_MATHEMATICS_CHARS:
        return _unparsable("the answer is too long", **detail)
    if not is_mathematics(given.text):
        return _unparsable("the answer is no mathematics", **detail)
    sides = re.split(r"(?<![\\<>!])=", given.text)
    if len(sides) == 2 and re.fullmatch(r"\s*(?:[A-Za-z]|\\[A-Za-z]+)\s*", sides[0]):  # x = 25
        named = expression(unwrapped(sides[1]))
        if named.plain is not None:
            return _compare(named.plain, right.plain, conversion(named.unit, right.unit), options, detail)
    if not options.allow_unevaluated and is_unevaluated(sides[-1]):
        return _scored(False, detail, reason="the answer is not worked out")
    return Question(given.text, right.text, factor, detail)


def is_unevaluated(text: str) -> bool:
    """Whether `text` is arithmetic on plain numbers that has operations left to carry out."""
    return _NUMERIC.fullmatch(text) is not None and _BINARY.search(_POWER_OF_TEN.sub("^", text)) is not None


def _compare(
    given: Plain, right: Plain, factor: Fraction | None, options: MathOptions, detail: dict[str, Any]
) -> Verdict:
    scaled = given.times(factor) if factor is not None else None
    return _scored(scaled is not None and same(scaled, right, options.places), detail)


def _scored(correct: bool, detail: dict[str, Any], **more: Any) -> Verdict:
    return Verdict.scored(1.0 if correct else 0.0, **detail, **more)


def _unparsable(reason: str, **detail: Any) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, None, 0.0, {**detail, "reason": reason})


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", plain_spelling(text).casefold()))


def _shown(text: str) -> str:
    text = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()  # it goes out as JSON, and models write lone surrogates
