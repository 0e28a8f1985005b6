"""Units: converted where both sides have one, ignored where only one has, never mistaken for variables."""

from __future__ import annotations

from fractions import Fraction

import pytest

from quintain.verifiers.math.read.units import conversion, parse_unit, split_unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25 cm", "25"),
        ("25cm", "25"),
        (r"25 \text{ cm}", "25"),
        (r"25\mathrm{cm}^2", "25"),
        ("25 square meters", "25"),
        ("25 km/h", "25"),
        ("25 miles per hour", "25"),
        (r"\frac{1}{2} \text{ m}", r"\frac{1}{2}"),
        (r"2\pi \text{ m}", r"2\pi"),
        ("$25", "25"),
        ("-$25", "-25"),
        (r"30^\circ", "30"),
        (r"30^{\circ}", "30"),
        (r"3 \text{ red apples}", "3"),
    ],
)
def test_a_unit_is_taken_off(text: str, value: str) -> None:
    assert split_unit(text)[0] == value


@pytest.mark.parametrize(
    "text",
    [
        "25",
        "5m",
        "2x",
        "2 x y",
        r"2\pi",
        r"\sin 30^\circ",
        "x^2",
        "3 + 2i",
        "25 or so",
        "(1, 2)",
        "m",
        "cm",
        "",
    ],
)
def test_what_is_no_unit_stays(text: str) -> None:
    value, unit = split_unit(text)
    assert (value.replace(" degrees", r"^\circ"), unit) == (text, None)


@pytest.mark.parametrize(
    ("one", "other", "factor"),
    [
        ("m", "cm", Fraction(100)),
        ("km/h", "m/s", Fraction(5, 18)),
        ("square meters", "cm^2", Fraction(10_000)),
        ("m s^-1", "m/s", Fraction(1)),
        ("meters per second squared", "m/s^2", Fraction(1)),
        ("liters", "cm^3", Fraction(1000)),
        ("cubic feet", "ft^3", Fraction(1)),
        ("dollars", "cents", Fraction(100)),
        ("years", "months", Fraction(12)),
        ("hours", "days", Fraction(1, 24)),
        ("m", "kg", None),
        ("m", "m^2", None),
        ("euros", "dollars", None),
    ],
)
def test_units_are_converted_exactly(one: str, other: str, factor: Fraction | None) -> None:
    a, b = parse_unit(one), parse_unit(other)
    assert a is not None
    assert b is not None
    assert conversion(a, b) == factor


def test_a_missing_unit_is_anything_unless_units_are_strict() -> None:
    for one, other in ((parse_unit("km"), None), (None, parse_unit("km"))):
        assert conversion(one, other) == 1
        assert conversion(one, other, strict=True) is None
    assert conversion(None, None, strict=True) == 1


def test_a_letter_right_behind_a_number_is_a_unit_only_on_demand() -> None:
    assert split_unit("5m") == ("5m", None)
    assert split_unit("5m", attached=True) == ("5", parse_unit("m"))


@pytest.mark.parametrize("text", ["", " ", "foo", "km foo", "km/", "square", "m^m", "m^2^3", "5"])
def test_what_is_in_no_table_is_no_unit(text: str) -> None:
    assert parse_unit(text) is None
