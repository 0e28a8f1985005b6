"""Where the answer in a text is: the policy of `extract`, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.math.find.extract import extract

from ..growth import growth

CASES = [
    # what no reader sees
    ("25<|im_end|>", "25"),
    # the last box, or those that belong together
    (r"\boxed{24}. No, wait: \boxed{25}", "25"),
    (r"\boxed{1} papers and \boxed{2} bins", "1 , 2"),
    (r"\boxed{1}, \boxed{2}", "1 , 2"),
    (r"\boxed{25}. So it is \boxed{25}.", "25"),
    (r"\boxed{1} no no no \boxed{2}", "2"),
    (r"\boxed{\boxed{25}}", "25"),
    (r"\boxed{28}\%", "28%"),
    (r"$\boxed{12}$ cm.", r"12 \text{cm}"),
    (r"\boxed{12} in the end", "12"),
    (r"\boxed{12}. The final answer is 13.", "13"),
    (r"\boxed{12}. This is the final answer.", "12"),
    (r"So $\boxed{25}$.", "25"),
    (r"\boxed{1} and then \boxed{\frac{1}{2}}, not 3", r"\frac{1}{2}"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\fbox{7}", "7"),
    (r"First \boxed{1}, then \boxed{2", None),
    (r"\boxed{}", None),
    (r"It is 25, so \boxed{2", None),
    # hashes
    ("He has 5 + 20 apples.\n#### 25", "25"),
    ("#### 1,234\nSome more 7", "1,234"),
    # the whole text
    ("25", "25"),
    ("25.", "25"),
    ("  $25$ ", "25"),
    ("**25**", "25"),
    ("`25`", "25"),
    ("17 + 8 = 25.", "25"),
    ("17+8=25", "25"),
    ("25<|im_end|>", "25"),
    ("(1, 2)", "(1, 2)"),
    ("x = 5", "x = 5"),
    ("y = 2x + 1", "y = 2x + 1"),
    ("17 + 8", "17 + 8"),
    ("5!", "5!"),
    ("B", "B"),
    (r"\[ x = \frac{1}{2} \]", r"x = \frac{1}{2}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ("−5", "-5"),
    ("\\[\nx = 1\n\\]", "x = 1"),
    # behind the word answer
    ("The answer is 25.", "25"),
    ("the answer is: **25**", "25"),
    ("**Answer: 25**", "25"),
    ("Answer:\n25", "25"),
    ("The answer to 17 + 8 is 25.", "25"),
    ("The answer is 25 because 17 + 8 = 25 and 2 is even.", "25"),
    ("The answer is 24. Wait, the answer is 25.", "25"),
    ("The answer is 25.\n\nIn step 3 we used 7.", "25"),
    ("The answer is $25$ for $x$.", "25"),
    (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    ("The answer is 2½ cups.", r"2\frac{1}{2} cups"),
    ("The answer is (B).", "(B)"),
    ("The answer is Tuesday.", "Tuesday"),
    ("The answer is 25!", "25"),
    ("The answer is as follows:\n25", "25"),
    # the last mathematics
    ("The sum is 25.", "25"),
    ("Sure! 17 + 8 = 25!", "25"),
    ("17 + 8 equals 25.", "25"),
    ("So 17 + 8 = 25.", "25"),
    ("17 plus 8 is 25", "25"),
    ("The sum of 17 and 8 is 25.", "25"),
    ("To add 17 and 8, we get 25.", "25"),
    ("So 10 - 3 = 7, and then 7 + 2 = 9.", "9"),
    ("There are 25 apples.", "25"),
    ("25 is the sum.", "25"),
    ("1. Add 17 and 8.\n2. That makes 25.", "25"),
    ("The 3rd one is 25.", "25"),
    ("It costs $25.", "$ 25"),
    ("It costs $25 and then $30 more.", "$ 30"),
    ("The speed is 60 miles per hour.", "60 miles per hour"),
    ("It is 12 percent of it", "12 percent"),
    ("The coordinates are (1, 2).", "(1, 2)"),
    (r"The result is \frac{\sqrt{3}}{2}.", r"\frac{\sqrt{3}}{2}"),
    ("The solutions are 2 and 3.", "2 , 3"),
    (r"So $x = 5$ or $x = 6$.", "x = 5 , x = 6"),
    (r"Area = 5 \text{ cm}^2", r"Area = 5 \text{ cm}^2"),
    ("If a = 5 then b is 25", "25"),
    ("17\n25", "17 , 25"),
    ("17 + 8 = 24\n17 + 8 = 25", "25"),
    # several candidates are a list, and a false equation no answer
    ("The answer is 25 (or 26).", "25 , 26"),
    ("It is 24, or possibly 25.", "24 , 25"),
    ("The answer is 25, not 24.", "25"),
    ("17 + 8 = 26", "17 + 8 = 26"),
    ("x < 1 or x > 3", "x < 1 or x > 3"),
    # words, and nothing at all
    ("Tuesday", "Tuesday"),
    ("I am afraid that I really do not know this", None),
    ("", None),
    (" \n ", None),
    ("...", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_the_answer_is_where_the_policy_says(text: str, answer: str | None) -> None:
    found = extract(text)
    assert (None if found is None else found.text) == answer


def test_only_a_box_counts_where_a_box_is_asked_for() -> None:
    assert extract("The answer is 25.", "boxed") is None
    found = extract(r"The answer is 24, \boxed{25}.", "boxed")
    assert found is not None
    assert (found.text, found.rule) == ("25", "boxed")


def test_the_whole_text_is_the_answer_where_that_is_asked_for() -> None:
    found = extract("(1, 2)", "whole")
    assert found is not None
    assert found.text == "(1, 2)"


PIECES = [
    *"0123456789abx +-*/^=(){}[]<>$\\.,!?\n%&_|:#\"'½２",
    "\\boxed{",
    "\\frac{",
    "answer is ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=150).map("".join))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    found = extract(text)
    assert found is None or found.text.strip() == found.text != ""


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "$",
        "\\(",
        "\\[",
        "$$",
        "answer is ",
        "((",
        "1 ",
        "1,",
        "\\text{",
        "\\begin{a}",
        "= ",
        "x",
        "{",
        "####",
        "\n",
        "e5",
        ".",
    ],
)
def test_long_texts_are_read_in_a_moment(piece: str) -> None:
    # This runs in the process of the caller. Linear time grows 16-fold here, quadratic time 256-fold.
    short = piece * (1_500 // len(piece))
    assert growth(extract, short, short * 16) < 150
    assert growth(extract, short * 16, short * 256) < 150  # of which only the end is read
