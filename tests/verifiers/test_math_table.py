"""Answers beside references, with the outcome that a careful person would give: about half are not equal.

The table is judged as one batch, and each row is a test.
"""

from __future__ import annotations

import pytest

from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item, verify_sync

EQUAL = [
    # plain numbers
    ("25", "25"),
    ("25", 25),
    ("25.0", 25),
    ("+25", "25"),
    ("-25", "-25"),
    ("−25", "-25"),
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    ("1 234 567", "1234567"),
    ("12,345.67", "12345.67"),
    ("0.5", 0.5),
    (".5", "1/2"),
    ("1/2", r"\frac{1}{2}"),
    (r"\frac12", "0.5"),
    (r"\dfrac{2}{4}", r"\frac{1}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("1 1/2", "3/2"),
    (r"1\frac{1}{2}", "1.5"),
    ("½", "1/2"),
    ("2½", "2.5"),
    ("１２３", "123"),
    ("1.5e3", "1500"),
    (r"1.5 \times 10^3", "1500"),
    ("1.5 × 10³", "1500"),
    (r"3 \cdot 10^{-4}", "0.0003"),
    ("1e400", r"10^{400}"),
    ("0.333333", "1/3"),
    ("1/3", "0.33333333"),
    (r"0.\overline{3}", "1/3"),
    ("0.1666667", r"\frac{1}{6}"),
    # percentages and units
    (r"12\%", "0.12"),
    ("12%", "12 percent"),
    ("50%", "1/2"),
    ("25 cm", "25"),
    (r"25\text{ cm}", r"25 \mathrm{cm}"),
    ("0.25 m", "25 cm"),
    ("5 km", r"5000\text{ meters}"),
    ("18 km/h", r"5\,\text{m/s}"),
    (r"12 \text{ cm}^2", "12 square centimeters"),
    (r"30^\circ", "30"),
    ("30 degrees", r"30^{\circ}"),
    (r"\$25", "25 dollars"),
    ("75 cents", r"\$0.75"),
    (r"2\sqrt{3} \text{ cm}", r"\sqrt{12} \text{ cm}"),
    # expressions
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{8}", "2"),
    (r"2^{10}", "1024"),
    ("2**10", "1024"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    ("3.14159265", r"\pi"),
    (r"\frac{9}{4}\pi", r"2.25\pi"),
    ("2π", r"2\pi"),
    ("x + 1", "1 + x"),
    ("(x+1)^2", "x^2 + 2x + 1"),
    ("x² + 2x + 1", "(x+1)^2"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\frac{x^2 - 1}{x - 1}", "x + 1"),
    ("3 + 2i", "2i + 3"),
    (r"\log_{10} 100", "2"),
    # sets, tuples, intervals
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("{1, 2, 3}", r"\{3, 2, 1\}"),
    ("2, 3", "3, 2"),
    (r"\pm 2", r"\{2, -2\}"),
    ("(1, 2)", "(1,2)"),
    (r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)"),
    ("(1, 2, 3)", "(1, 2, 3)"),
    ("[1, 2)", "[1,2)"),
    (r"[0, 1) \cup (2, \infty)", r"(2, \infty) \cup [0, 1)"),
    (r"(-∞, 2]", r"x \le 2"),
    (r"1 \le x \le 2", "[1, 2]"),
    (r"\mathbb{R}", r"(-\infty, \infty)"),
    (r"\emptyset", r"\varnothing"),
    # matrices
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
    ),
    (r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ 1 \end{pmatrix}"),
    # equations and inequalities
    ("x = 5", "5"),
    ("5", "x = 5"),
    ("y = 2x + 1", "2x + 1"),
    ("y - 2x = 1", "y = 2x + 1"),
    ("6x + 4y = 10", "3x + 2y = 5"),
    ("x > 3", "3 < x"),
    ("x = 1 or x = 2", r"\{1, 2\}"),
    # texts
    ("B", "B"),
    ("(B)", "B"),
    ("Tuesday", r"\text{Tuesday}"),
    # references as data sets write them
    ("25", r"\boxed{25}"),
    ("1234", "He pays 1000 + 234.\n#### 1,234"),
    ("7", "$7$"),
    ("5", "5 apples"),
    ("The answer is 2 pears.", r"2 \text{ pears}"),
]

NOT_EQUAL = [
    # plain numbers
    ("25", "26"),
    ("25", 2.5),
    ("-25", "25"),
    ("25.0000001", "25"),
    ("2.5", "25"),
    ("1.234", "1,234"),
    ("1234", "1235"),
    ("0.5", "1/3"),
    ("0.3333", "1/3"),
    ("0.333334", "1/3"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("1 1/2", "1/2"),
    (r"1\frac{1}{2}", "1/2"),
    ("½", "2"),
    ("１２", "13"),
    ("1e400", "1"),
    ("1e400", "1e401"),
    ("1e999999999", "1"),
    ("1.5e3", "1501"),
    (r"1.5 \times 10^3", "15000"),
    ("1e-7", "2e-7"),
    ("0.0000001", "0"),
    (r"2^{-99}", r"2^{-98}"),
    ("12345678901234567890", "12345678901234567891"),
    (r"0.\overline{3}", "3/10"),
    # percentages and units
    (r"12\%", "12"),
    ("12", r"12\%"),
    ("0.12%", "12%"),
    ("25 cm", "26"),
    (r"25\text{ cm}", r"25\text{ m}"),
    ("25 m", "25 kg"),
    ("5 km", "500 m"),
    ("18 km/h", "18 m/s"),
    (r"12 \text{ cm}", r"12 \text{ cm}^2"),
    (r"31^\circ", "30"),
    ("75 cents", r"\$75"),
    (r"2\sqrt{3} \text{ cm}", r"2\sqrt{3} \text{ kg}"),
    # expressions
    (r"2\sqrt{3}", r"\sqrt{6}"),
    (r"\sqrt{2}", "1.4142"),
    ("3.14", r"\pi"),
    ("22/7", r"\pi"),
    (r"2^{10}", "1025"),
    ("5!", "125"),
    (r"\binom{5}{2}", "20"),
    ("x + 1", "x - 1"),
    ("x", "y"),
    ("(x+1)^2", "x^2 + 1"),
    (r"\sin^2 x", r"\cos^2 x"),
    ("3 + 2i", "3 - 2i"),
    (r"\log_{10} 100", r"\ln 100"),
    ("-\\infty", r"\infty"),
    ("1/0", "5"),
    # not worked out, or read as a sum by a parser of mixed numbers
    ("17 + 8", "25"),
    ("5 * 5", "25"),
    (r"5 \times 5", "25"),
    ("30 - 5", 25),
    ("12 13", "25"),
    ("17 8", 25),
    (r"\frac{1}{2} + \frac{1}{3}", "5/6"),
    # sets, tuples, intervals
    (r"\{1, 2\}", r"\{1, 3\}"),
    (r"\{1, 2\}", r"\{1, 2, 3\}"),
    ("25, 26", "25"),
    ("25 or 26", "25"),
    ("(1, 2)", "(2, 1)"),
    ("[1, 2]", "(1, 2)"),
    ("[1, 2)", "(1, 2]"),
    ("[1, 2]", "[1, 3]"),
    (r"[0, 1)", r"[0, 1) \cup (2, 3)"),
    (r"x < 2", r"(-\infty, 2]"),
    (r"\emptyset", r"\{0\}"),
    # matrices
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}",
    ),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}",
    ),
    # equations and inequalities
    ("x = 6", "5"),
    ("y = 5", "x = 5"),
    ("x^2 = 25", "25"),
    ("y = 2x + 1", "2x - 1"),
    ("y = 2x + 1", "y = 2x + 2"),
    (r"x \ge 3", "x > 3"),
    ("x > 3", "x < 3"),
    # texts
    ("C", "B"),
    ("Monday", "Tuesday"),
    ("25", "Tuesday"),
    ("6", "5 apples"),
]

UNPARSABLE = [
    ("", "25"),
    ("   ", "25"),
    ("I don't know.", "25"),
    ("hello world", "25"),
    (r"\boxed{}", "25"),
    (r"\boxed{25", "25"),
    ("<think>the answer is 25", "25"),
    ("???", "25"),
    ("Tuesday", "25, 26"),
    ("I cannot say.", r"\sqrt{2}"),
    ("x" * 100_000, "25"),
]

BAD_REFERENCE = [
    ("25", ""),
    ("25", "   "),
    ("25", None),
    ("25", True),
    ("25", [25]),
    ("25", {"answer": 25}),
    ("25", float("nan")),
    ("25", float("inf")),
    ("25", 10**5000),
    ("25", "1/0"),
    ("25", r"\boxed{}"),
    (r"\sqrt{2}", r"\frac{1}{"),
    ("25", "+".join("x" * 5000)),
]

TABLE = [
    *((*pair, Outcome.CORRECT) for pair in EQUAL),
    *((*pair, Outcome.WRONG) for pair in NOT_EQUAL),
    *((*pair, Outcome.UNPARSABLE) for pair in UNPARSABLE),
    *((*pair, Outcome.BAD_REFERENCE) for pair in BAD_REFERENCE),
]


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    """The verdict on each row of the table."""
    return verify_sync("math", [Item(answer, reference) for answer, reference, _ in TABLE], {"deadline_s": 60.0})


def _name(row: tuple[str, object, Outcome]) -> str:
    reference = row[1][:30] if isinstance(row[1], str) else type(row[1]).__name__
    return f"{row[0][:30]}-{reference}"


@pytest.mark.parametrize("row", range(len(TABLE)), ids=map(_name, TABLE))
def test_the_outcome_is_the_one_in_the_table(verdicts: list[Verdict], row: int) -> None:
    answer, _, outcome = TABLE[row]
    verdict = verdicts[row]
    assert verdict.outcome is outcome, f"{answer[:50]!r}: {verdict}"
    assert verdict.score == {Outcome.CORRECT: 1.0, Outcome.BAD_REFERENCE: None}.get(outcome, 0.0)


def test_about_half_of_the_table_is_not_equal() -> None:
    assert len(EQUAL) + len(NOT_EQUAL) >= 150
    assert 0.8 <= len(EQUAL) / len(NOT_EQUAL) <= 1.25
