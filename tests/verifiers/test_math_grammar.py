"""The grammar of expressions: its conventions, and what it refuses."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.verifiers.math.read.exact import Undefined, exact, is_true
from quintain.verifiers.math.read.grammar import parse
from quintain.verifiers.math.read.tree import Node, Undecided, Unreadable

SAME = [
    (r"\sin 2x", r"\sin(2x)"),
    (r"\sin(x) y", r"(\sin x) y"),
    (r"\sin x \cos y", r"\sin(x) \cos(y)"),
    (r"\sin^2 x", r"(\sin x)^2"),
    (r"\sin^{-1} x", r"\arcsin x"),
    ("x^10", "x^{10}"),
    ("2**3**2", "2^{3^2}"),
    (r"\frac12", r"\frac{1}{2}"),
    (r"\frac1{2}", r"\frac{1}{2}"),
    (r"\sqrt2", r"\sqrt{2}"),
    (r"\sqrt(2)", r"\sqrt{2}"),
    (r"\sqrt 12", r"\sqrt{12}"),
    ("sqrt(2)", r"\sqrt{2}"),
    ("pi", r"\pi"),
    (r"\mathrm{e}", "e"),
    (r"\operatorname{sin} x", r"\sin x"),
    (r"|x|", r"\lvert x \rvert"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_are_one_tree(one: str, other: str) -> None:
    assert parse(one) == parse(other) or str(parse(one)) == str(parse(other))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3^2", Fraction(-9)),
        ("2^3^2", Fraction(512)),
        ("6/2(1+2)", Fraction(9)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"3\frac{3}{2}", Fraction(9, 2)),
        (r"2 \cdot -3", Fraction(-6)),
        ("5!", Fraction(120)),
        (r"\binom{5}{2}", Fraction(10)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        (r"\sqrt[3]{27}", Fraction(3)),
        (r"8^{\frac{2}{3}}", Fraction(4)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"\lfloor \frac{7}{2} \rfloor", Fraction(3)),
        (r"\gcd(12, 18)", Fraction(6)),
        ("12%", Fraction(3, 25)),
        ("1.5e3", Fraction(1500)),
        (r"\frac{2006!}{2004!}", Fraction(2005 * 2006)),
        (r"2^{-99}", Fraction(1, 2**99)),
    ],
)
def test_arithmetic_has_its_exact_value(text: str, value: Fraction) -> None:
    assert exact(parse(text)) == value


@pytest.mark.parametrize("text", ["12 13", "4 4/9 2", "x 2", r"\frac{1}{2} 3", "1" * 1_001, "1e1001", "x" * 5_000])
def test_what_is_ambiguous_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(Undecided):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "(1",
        "1)",
        "{1",
        r"\frac{1}",
        r"\sqrt",
        "1 +",
        "x = 1",
        r"\int x dx",
        r"\foo",
        "1 .",
        "ß",
        "|x",
        "1, 2",
    ],
)
def test_what_is_no_expression_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


@pytest.mark.parametrize("text", ["9^{9^{9^9}}", "2^{1000000}", "99999999!", "10^{10^{10}}"])
def test_what_is_too_large_is_not_written_out(text: str) -> None:
    with pytest.raises(Undecided):
        exact(parse(text))


def test_a_division_by_zero_has_no_value() -> None:
    with pytest.raises(Undefined):
        exact(parse(r"\frac{1}{2-2}"))


@pytest.mark.parametrize(
    ("text", "truth"),
    [("17 + 8 = 25", True), ("3 = 5", False), ("1+1=2=3", False), ("1/0 = 1", False), ("x = 5", None), ("25", None)],
)
def test_an_equation_of_numbers_is_true_or_false(text: str, truth: bool | None) -> None:
    assert is_true(text) is truth


PIECES = [*"{}()[]x1^-!|_%/", "12", "\\sqrt", "\\frac", "\\sin", "\\pm"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_any_text_is_a_tree_or_is_none(text: str) -> None:
    try:
        tree = parse(text)
    except (Undecided, Unreadable):
        return
    assert parse(text) == tree


@pytest.mark.parametrize("piece", [*PIECES, "1/", "x^", "(-", "\\frac1", "\\sqrt{", "x+", "x ", "\\left(", "|x"])
@pytest.mark.parametrize("ending", ["", "x"])
def test_depth_and_length_are_bounded(piece: str, ending: str) -> None:
    tree = parsed_or_none(piece * 700 + ending)
    assert tree is None or depth(tree) < 20


def parsed_or_none(text: str) -> Node | None:
    """The tree of a text that also has its value computed, or None where it has none."""
    try:
        tree = parse(text)
        exact(tree)
    except (Undecided, Unreadable, Undefined):
        return None
    return tree


def depth(tree: Node) -> int:
    """How many nodes are in each other."""
    return 1 + max(map(depth, tree.args), default=0)
