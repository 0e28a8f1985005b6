"""The fast path: decide what can be decided without algebra, in this process, and exactly.

`decide` gives a verdict, or the question that only the full check can answer. It decides: whatever is missing or
too long, plain numbers with units on both sides, choices, texts, and answers spelled like the reference. It never
guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.math.find.extract import Extracted, extract, spans
from quintain.verifiers.math.find.reference import Reference, read_reference
from quintain.verifiers.math.options import MathOptions
from quintain.verifiers.math.read.exact import is_true
from quintain.verifiers.math.read.lexer import MAX_CHARS
from quintain.verifiers.math.read.numbers import Plain, decimal_comma, parse_plain, same, within
from quintain.verifiers.math.read.spelling import comparable, is_a_word, same_words, tokens_of, unwrapped
from quintain.verifiers.math.read.units import Unit, conversion, split_unit
from quintain.verifiers.pure import unparsable
from quintain.verifiers.rules.choices import chosen_letters, listed_letters
from quintain.verifiers.text import shown

_CHOICE = re.compile(r"\(?([A-J])\)?[.)]?")
"""A reference that is a choice; letters beyond J are variables, mostly."""
_SET = re.compile(r"(?<![A-Za-z^_}\]\\])\s*\{")
_BASED = re.compile(r"(\d{1,200})_(?:\{\d{1,2}\}|\d)", re.ASCII)
_NUMERIC = re.compile(r"(?:[\d\s.,+\-*/^(){}%]|\\(?:times|cdot|div|frac|sqrt|pm)(?![A-Za-z]))+", re.ASCII)
_POWER_OF_TEN = re.compile(r"(?:\\times|\\cdot|\*|[xX])\s*10\s*(?=\^|\*\*)|(?<=\d)[eE][+-]?(?=\d)|\*\*")
_BINARY = re.compile(
    r"[\d)\]}%!]\s*(?:[+*-]|\\times|\\cdot|\\div)\s*[-+]?\s*[\d.({\\]|\d\s+\d"  # 12 13 was once read as 12 + 13
)
_OPERATIONS = re.compile(
    r"(?<!_)(?<!_\{)\\(?:sum|prod|i{1,3}nt|oint|lim|det|gcd|lcm|max|min|b?mod)(?![A-Za-z])"
    r"|\\frac\s*\{\s*(?:d|\\partial)\s*\}|(?<![A-Za-z\\])(?:gcd|lcm|max|min|mod|det|lim)(?=[\s({_])"
)
"""Operations whose result is what a question asks for. Roots, powers, logarithms, factorials, binomials and the like
are none: an answer may be left in terms of them."""
_MAY_BE_TEXT = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}|[=<>$]")
_RELATION = re.compile(r"(?<![\\<>!:])=")


@dataclass(frozen=True, slots=True)
class Expression:
    """One side of a comparison: its text without its unit, the unit, and its value if a plain number."""

    text: str
    unit: Unit | None
    plain: Plain | None


def decide(answer: str, reference: Any, options: MathOptions) -> Verdict | dict[str, Any]:
    """The verdict on `answer`, or what is left to ask of `full.check`."""
    expected = read_reference(reference, options.reference)
    if isinstance(expected, str):
        return Verdict.failed(Outcome.BAD_REFERENCE, expected)
    body = options.body_of(answer)
    if body is None:
        return unparsable("there is no answer behind the thinking")
    right = expression(expected.text, noted=True)
    if right.plain is None and _MAY_BE_TEXT.search(expected.text) is not None:
        asked = tokens_of(expected.text)
        for rule, span in spans(body, options.extraction):
            if tokens_of(span) == asked:
                return Verdict.scored(1.0, answer=shown(span), rule=rule)
    found = extract(body, options.extraction)
    if found is None:
        return unparsable("there is no answer in the text")
    detail: dict[str, Any] = {"answer": shown(found.text), "rule": found.rule}
    choice = _CHOICE.fullmatch(expected.text)
    if choice is not None:
        letters = _letters(body, found)
        if letters:
            reason: dict[str, Any] = {"reason": "more than one choice"} if len(letters) > 1 else {}
            return Verdict.scored(float(letters == {choice[1]}), **detail, **reason)
    given = expression(found.text)
    if right.plain is not None:
        return _against_number(found, given, right, expected, options, detail)
    if tokens_of(found.text) == tokens_of(expected.text):
        return Verdict.scored(1.0, **detail)
    same_units = conversion(given.unit, right.unit, strict=options.units == "strict") == 1
    same_braces = found.groups == expected.groups or _SET.search(given.text) is None
    if comparable(given.text) == comparable(right.text) and same_units and same_braces:
        return Verdict.scored(1.0, **detail)
    based = _BASED.fullmatch(right.text) if options.units == "lenient" else None
    if based is not None and given.plain is not None:  # the question names the base, mostly
        return Verdict.scored(float(given.text == based[1]), **detail)
    if len(given.text) > MAX_CHARS:
        return unparsable("the answer is too long", **detail)
    if not options.allow_unevaluated and is_repeated(last_side(found.text), expected.text):
        return Verdict.scored(0.0, **detail, reason="the answer is not worked out")
    if is_a_word(expected.text) and same_words(found.text, expected.text):
        return Verdict.scored(1.0, **detail)
    return _question(found, expected, options, detail)


def _letters(body: str, found: Extracted) -> frozenset[str]:
    """The letters that an answer names as choices."""
    if found.rule in ("boxed", "marked", "whole"):
        return listed_letters(found.text, bare_small=False)
    return chosen_letters(body, bare_small=False)


def expression(text: str, *, noted: bool = False) -> Expression:
    """`text`, unwrapped already, taken apart; `noted`: see `split_unit`."""
    plain = parse_plain(text)
    if plain is not None or len(text) > MAX_CHARS:
        return Expression(text, None, plain)
    value, unit = split_unit(text, noted=noted)
    value = unwrapped(value)
    return Expression(value, unit, parse_plain(value))


def is_repeated(given: str, right: str) -> bool:
    """Whether the answer leaves an operation to be carried out that the reference does not name."""
    left = {operation[0] for operation in _OPERATIONS.finditer(given)}
    return bool(left - {operation[0] for operation in _OPERATIONS.finditer(right)})


def last_side(text: str) -> str:
    """What stands behind the last equals sign that is in no braces."""
    for sign in reversed(list(_RELATION.finditer(text))):
        side = text[sign.end() :]
        if side.count("{") == side.count("}"):
            return side
    return text


def is_unevaluated(text: str) -> bool:
    """Whether `text` is arithmetic on plain numbers that has operations left to carry out."""
    return _NUMERIC.fullmatch(text) is not None and _BINARY.search(_POWER_OF_TEN.sub("^", text)) is not None


def _against_number(
    found: Extracted,
    given: Expression,
    right: Expression,
    expected: Reference,
    options: MathOptions,
    detail: dict[str, Any],
) -> Verdict | dict[str, Any]:
    assert right.plain is not None
    if given.plain is None and (pointed := decimal_comma(given.text)) is not None:
        given = Expression(pointed, given.unit, parse_plain(pointed))
    if given.plain is None and given.unit is None and len(given.text) <= MAX_CHARS:
        value, unit = split_unit(given.text, attached=True)  # beside a number, the m of 5m is no variable
        if unit is not None and parse_plain(value) is not None:
            given = Expression(value, unit, parse_plain(value))
    if given.plain is not None:
        return _compare(given, right, expected, options, detail)
    if len(given.text) > MAX_CHARS:
        return unparsable("the answer is too long", **detail)
    if is_true(given.text) is False:
        return Verdict.scored(0.0, **detail, reason="the equation is not true")
    sides = _RELATION.split(found.text)
    if len(sides) == 2 and re.fullmatch(r"\s*(?:[A-Za-z]|\\[A-Za-z]+)\s*", sides[0]):  # x = 25
        named = expression(unwrapped(sides[1]))
        if named.plain is not None:
            return _compare(named, right, expected, options, detail)
    last = expression(unwrapped(last_side(found.text))).text
    if not options.allow_unevaluated and (is_unevaluated(last) or is_repeated(last, right.text)):
        return Verdict.scored(0.0, **detail, reason="the answer is not worked out")
    return _question(found, expected, options, detail)


def _compare(
    given: Expression, right: Expression, expected: Reference, options: MathOptions, detail: dict[str, Any]
) -> Verdict:
    assert given.plain is not None
    assert right.plain is not None
    factor = conversion(given.unit, right.unit, strict=options.units == "strict")
    if factor is None:
        return Verdict.scored(0.0, **detail, reason="the units do not go together")
    equal = _near(given.plain, right.plain, factor, expected, options)
    if not equal and options.percent == "lenient" and right.text.rstrip().endswith(("%", "percent")):
        bare = not given.text.rstrip().endswith(("%", "percent"))
        equal = bare and _near(given.plain, right.plain, factor / 100, expected, options)
    return Verdict.scored(float(equal), **detail)


def _near(given: Plain, right: Plain, factor: Fraction, expected: Reference, options: MathOptions) -> bool:
    scaled = given.times(factor)
    if scaled is None:
        return False
    if expected.rel_tol is not None or expected.abs_tol is not None:
        return within(scaled, right, expected.rel_tol, expected.abs_tol)
    return same(scaled, right, options.places)


def _question(found: Extracted, expected: Reference, options: MathOptions, detail: dict[str, Any]) -> dict[str, Any]:
    """Is the answer the same as the reference? `close` and `judge` are fields of `Closeness` and `Judge`."""
    close: dict[str, Any] = {"places": options.places, "rename": options.rename}
    for name in ("rel_tol", "abs_tol"):
        value = getattr(expected, name)
        if value is not None:
            close[name] = str(value)  # the wire has 64 bits for a number
    return {
        "answer": found.text,
        "answer_groups": found.groups,
        "reference": expected.text,
        "reference_groups": expected.groups,
        "close": close,
        "judge": {name: getattr(options, name) for name in ("units", "percent", "relations_are_sets")},
        "detail": detail,
    }
