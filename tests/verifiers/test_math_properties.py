"""What holds of the judgement whatever the mathematics: symmetry, spelling, agreement of its two paths."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers.math.read.numbers import parse_plain, same

from .math_pairs_judged import checked, outcome

FEW = settings(max_examples=40, deadline=None)


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.builds(lambda a, b: rf"\frac{{{a}}}{{{b}}}", st.integers(-99, 99), st.integers(2, 99)),
    st.builds(lambda a, b: f"{a}.{b}", st.integers(-99, 99), st.integers(1, 99)),
)
ATOMS = st.one_of(
    st.integers(1, 30).map(str),
    st.sampled_from(["x", "y", "n", r"\pi", "a_1", r"\alpha"]),
    st.integers(2, 30).map(lambda n: rf"\sqrt{{{n}}}"),
    st.builds(lambda a, b: rf"\frac{{{a}}}{{{b}}}", st.integers(1, 20), st.integers(2, 20)),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"{a} + {b}", inner, inner),
        st.builds(lambda a, b: f"{a} - ({b})", inner, inner),
        st.builds(lambda a, b: rf"({a}) \cdot ({b})", inner, inner),
        st.builds(lambda a, n: f"({a})^{{{n}}}", inner, st.integers(2, 3)),
        inner.map(lambda a: rf"\sin({a})"),
        inner.map(lambda a: rf"\left|{a}\right|"),
    ),
    max_leaves=5,
)
MATHEMATICS = st.one_of(
    EXPRESSIONS,
    st.builds(lambda a, b: f"({a}, {b})", EXPRESSIONS, EXPRESSIONS),
    st.builds(lambda a, b: rf"\{{{a}, {b}\}}", EXPRESSIONS, EXPRESSIONS),
    st.builds(lambda a, b: f"[{a}, {b})", NUMBERS, NUMBERS),
    EXPRESSIONS.map(lambda a: f"z = {a}"),
    NUMBERS.map(lambda a: rf"x \le {a}"),
)


@FEW
@given(MATHEMATICS)
def test_everything_is_what_it_is(text: str) -> None:
    assert outcome(text, text) is Outcome.CORRECT
    assert checked(text, text) is Outcome.CORRECT


@FEW
@given(MATHEMATICS, MATHEMATICS)
def test_who_is_the_reference_does_not_matter(one: str, other: str) -> None:
    assert (outcome(one, other) is Outcome.CORRECT) is (outcome(other, one) is Outcome.CORRECT)


@FEW
@given(EXPRESSIONS, EXPRESSIONS)
def test_a_sum_is_the_same_in_any_order_and_another_with_one_more(one: str, other: str) -> None:
    assert outcome(f"({one}) + ({other})", f"({other}) + ({one})") is Outcome.CORRECT
    assert outcome(f"({one}) + ({other}) + 1", f"({other}) + ({one})") is not Outcome.CORRECT


@FEW
@given(MATHEMATICS)
def test_writing_it_otherwise_changes_nothing(text: str) -> None:
    for other in (
        text.replace(" ", "  "),
        text.replace(" ", r"\, "),
        text.replace("(", r"\left(").replace(")", r"\right)") if text.count("(") == text.count(")") else text,
        text.replace(r"\frac", r"\dfrac"),
        rf"\boxed{{{text}}}",
        f"$${text}$$",
        f"The answer is ${text}$.",
    ):
        assert outcome(other, text) is Outcome.CORRECT, other


@FEW
@given(EXPRESSIONS, st.integers(1, 10**9))
def test_a_number_more_is_another_number(text: str, difference: int) -> None:
    assert checked(f"{text} + {difference}", text) is not Outcome.CORRECT
    assert checked(f"{text} + 10^{{-{difference % 200 + 1}}}", text) is not Outcome.CORRECT


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_both_paths_agree_on_plain_numbers(one: str, other: str) -> None:
    a, b = parse_plain(one), parse_plain(other)
    assert a is not None
    assert b is not None
    assert (checked(one, other) is Outcome.CORRECT) is same(a, b, 6), (one, other)


@given(st.integers(), st.integers())
def test_unrelated_numbers_are_wrong(one: int, other: int) -> None:
    assume(one != other)
    assert outcome(str(one), other) is Outcome.WRONG
    assert outcome(rf"\boxed{{{one}}}", str(other)) is Outcome.WRONG


@given(st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True), st.data())
def test_naming_several_candidates_is_naming_none(numbers: list[int], data: st.DataObject) -> None:
    reference = data.draw(st.sampled_from(numbers))
    candidates = [str(number) for number in numbers]
    for text in (
        " or ".join(candidates),
        ", ".join(candidates),
        "The answer is " + " or maybe ".join(candidates) + ".",
        " ".join(rf"\boxed{{{number}}}" for number in candidates),
        r"\boxed{" + r" \text{ or } ".join(candidates) + "}",
        r"\{" + ", ".join(candidates) + r"\}",
    ):
        assert outcome(text, str(reference)) is not Outcome.CORRECT, text


PIECES = [
    *"0123456789abefixyz +-*/^=(){}[]<>$\\.,!?\n%&_|:;#\"'½２√π",
    *("\\frac{", "\\sqrt{", "\\boxed{", "\\text{", "\\left", "\\right", "\\{", "\\}", "\\cup ", "\\le ", "\\in "),
    *("\\infty", "\\pm ", "\\begin{pmatrix}", "\\end{pmatrix}", "\\sin ", "\\\\", " or ", " and ", "\\log_", "^{"),
    *("\\circ ", "\\overline{", "\\sum_{", "cm", "answer is "),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.sampled_from(["25", r"\sqrt{2}", "(1, 2]", "x"]))
def test_any_text_gets_an_outcome_and_never_an_exception(answer: str, reference: str) -> None:
    assert checked(answer, reference) in {Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE}
    assert checked(reference, answer) in set(Outcome)
    assert outcome(answer, reference) in {Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE}


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000), st.floats(0, 0.99), st.floats(0, 1e6))
def test_a_tolerance_is_what_it_says(one: Fraction, other: Fraction, rel_tol: float, abs_tol: float) -> None:
    allowed = max(Fraction(repr(rel_tol)) * abs(other), Fraction(repr(abs_tol)))
    reference = {"answer": f"{other.numerator}/{other.denominator}", "rel_tol": rel_tol, "abs_tol": abs_tol}
    found = outcome(f"{one.numerator}/{one.denominator}", reference)
    assert (found is Outcome.CORRECT) is (abs(one - other) <= allowed)


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
def test_powers_that_differ_in_the_last_digit_differ(size: int) -> None:
    assert checked(f"3^{{{size}}} + 1", f"3^{{{size}}}") is Outcome.WRONG
    assert checked(f"3^{{-{size}}}", f"3^{{-{size + 1}}}") is Outcome.WRONG
    assert checked(f"3^{{{size}}} \\cdot 3", f"3^{{{size + 1}}}") is Outcome.CORRECT
