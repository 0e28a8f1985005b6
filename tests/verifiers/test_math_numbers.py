"""Plain numbers: exact against fraction arithmetic, and in agreement with the full check."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers.math.read.numbers import Digits, decimal_comma, parse_plain, rounds_to, same, within

from ..growth import growth
from .math_pairs_judged import checked

INTEGERS = st.integers(-(10**12), 10**12)


@st.composite
def written(draw: st.DrawFn, value: Fraction) -> str:
    """`value` in one of the ways in which people write it."""
    ways = [f"{value.numerator}/{value.denominator}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    k = draw(st.integers(2, 9))
    ways.append(rf"\dfrac{{{value.numerator * k}}}{{{value.denominator * k}}}".replace(r"\d", "\\"))
    digits = _decimal(value)
    if digits is not None:
        ways += [
            digits,
            digits + ("0" if "." in digits else ".0"),
            rf"{digits} \times 10^{{0}}",
            f"{digits}e0",
        ]
        shifted = _decimal(value * 1000)
        ways += [f"{shifted}e-3", rf"{shifted} \cdot 10^{{-3}}"]
        percent = _decimal(value * 100)
        ways += [f"{percent}%", rf"{percent} percent"]
    if value.denominator == 1:
        ways += [str(value.numerator), f"{value.numerator:,}"]
    sign, size = ("-", -value) if value < 0 else ("", value)
    whole, part = divmod(size, 1)
    if whole and part:
        ways += [
            f"{sign}{whole} {part.numerator}/{part.denominator}",
            rf"{sign}{whole}\frac{{{part.numerator}}}{{{part.denominator}}}",
        ]
    return draw(st.sampled_from(ways))


def _decimal(value: Fraction) -> str | None:
    """`value` as a decimal of at most twelve places, where it is one."""
    scaled = value * 10**12
    if scaled.denominator != 1:
        return None
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled.numerator):013d}"
    text = f"{sign}{digits[:-12]}.{digits[-12:]}".rstrip("0").rstrip(".")
    return text or "0"


RATIONALS = st.builds(Fraction, INTEGERS, st.sampled_from([1, 1, 2, 3, 5, 7, 8, 10, 100, 625, 999]))


@given(st.data(), RATIONALS)
def test_every_way_of_writing_a_number_has_its_value(data: st.DataObject, value: Fraction) -> None:
    text = data.draw(written(value))
    plain = parse_plain(text)
    assert plain is not None, text
    assert plain.value == value, text


@given(st.data(), RATIONALS, RATIONALS, st.integers(0, 8))
def test_sameness_is_that_of_fractions(data: st.DataObject, one: Fraction, other: Fraction, places: int) -> None:
    a, b = parse_plain(data.draw(written(one))), parse_plain(data.draw(written(other)))
    assert a is not None
    assert b is not None
    expected = one == other or ((a.decimal or b.decimal) and rounds_to(one, other, places))
    assert same(a, b, places) == expected == same(b, a, places)


@given(RATIONALS, st.integers(6, 12))
def test_a_correctly_rounded_decimal_stands_for_its_fraction(value: Fraction, places: int) -> None:
    assume(abs(value) >= Fraction(1, 10) and value.denominator != 1)
    rounded = _decimal(Fraction(round(value * 10**places), 10**places))
    assert rounded is not None
    assume("." in rounded)
    a, b = parse_plain(rounded), parse_plain(f"{value.numerator}/{value.denominator}")
    assert a is not None
    assert b is not None
    assert same(a, b, 6)
    assert same(a, b, 0) == (a.value == b.value)


@given(RATIONALS, RATIONALS)
def test_a_whole_number_is_matched_exactly(value: Fraction, nudge: Fraction) -> None:
    assume(nudge != 0)
    near = value + nudge / 10**30
    assert not rounds_to(Fraction(round(value)), near if near != round(value) else near + 1, 6)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(-(10**6), 10**6), st.sampled_from([1, 2, 3, 4, 7, 10, 100]), st.integers(-50, 50))
def test_the_fast_path_agrees_with_the_full_check(
    data: st.DataObject, numerator: int, denominator: int, difference: int
) -> None:
    value = Fraction(numerator, denominator)
    other = value + difference * data.draw(st.sampled_from([Fraction(0), Fraction(1, 100), Fraction(1)]))
    left, right = data.draw(written(value)), data.draw(written(other))
    a, b = parse_plain(left), parse_plain(right)
    assert a is not None
    assert b is not None
    assert (checked(left, right) is Outcome.CORRECT) is same(a, b, 6), (left, right)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("-0.0", Fraction(0)),
        ("0e5", Fraction(0)),
        ("007", Fraction(7)),
        ("- 5", Fraction(-5)),
        ("(5)", Fraction(5)),
        ("-(1/2)", Fraction(-1, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"-1.\overline{3}", Fraction(-4, 3)),
        (r"\frac{1.5}{0.5}", Fraction(3)),
        (r"\frac 1 2", Fraction(1, 2)),
        ("2x10^3", Fraction(2000)),
        ("2 * 10**-3", Fraction(1, 500)),
    ],
)
def test_unusual_spellings_are_understood(text: str, value: Fraction) -> None:
    plain = parse_plain(text)
    assert plain is not None
    assert plain.value == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "1/0", r"\frac{1}{0}", "1,2", "1,23", "12,3456", "0,123", "1 23", "1..2", "1e", "e5",
     "1e5.5", "1/2/3", "5!", "(5", "5)", "0x10", "1_000", r"2\frac{3}{2}", "17 + 8", "nan", "inf", "1/2 1/2"],
)  # fmt: skip
def test_what_is_not_certainly_a_plain_number_is_none(text: str) -> None:
    assert parse_plain(text) is None


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1e999999999", "1", False),
        ("1e999999999", "10e999999998", True),
        ("1e-999999999", "0", False),
        ("1e999999999", "-1e999999999", False),
        ("1e100000%", "1e99998", True),
        ("9" * 100_000, "9" * 100_000, True),
        ("9" * 100_000, "9" * 99_999 + "8", False),
        ("9" * 100_000, "25", False),
        ("0" * 100_000 + "25", "25", True),
        ("25." + "0" * 100_000, "25", True),
        ("1" + "0" * 5_000, "1e5000", True),
        ("1e5000", r"\frac{1}{3}", False),
    ],
)
def test_huge_numbers_are_compared_exactly(one: str, other: str, equal: bool) -> None:
    a, b = parse_plain(one), parse_plain(other)
    assert a is not None
    assert b is not None
    assert same(a, b, 6) is equal
    assert within(a, b, Fraction(1, 2), None) is equal or (one, equal) == ("9" * 100_000, False)


@pytest.mark.parametrize(
    ("text", "pointed"),
    [("2,74", "2.74"), ("-0,111", "-0.111"), ("1000,99", "1000.99"), ("1,234", None), ("1, 5", None), ("1,2,3", None)],
)
def test_a_comma_is_a_point_only_where_it_can_be_nothing_else(text: str, pointed: str | None) -> None:
    assert decimal_comma(text) == pointed


def test_a_huge_number_is_never_written_out() -> None:
    plain = parse_plain("12e999999999999")
    assert plain is not None
    assert plain.value == Digits(False, "12", 999999999999)


@given(st.text(alphabet="0123456789.,eE+-/%() \\fracx*^{}", max_size=60))
def test_any_text_is_a_plain_number_or_none(text: str) -> None:
    plain = parse_plain(text)
    assert plain is None or same(plain, plain, 6)


@pytest.mark.parametrize("piece", ["1", "1 ", "1,", "1,234", "(", " ", "1/", ".", "e", "-", "\\frac", "1 234 "])
def test_long_texts_are_read_in_a_moment(piece: str) -> None:
    # Linear time grows 16-fold here, quadratic time 256-fold.
    short = piece * (12_500 // len(piece))
    assert growth(parse_plain, short, short * 16) < 100
    assert growth(parse_plain, short + "x", short * 16 + "x") < 100
