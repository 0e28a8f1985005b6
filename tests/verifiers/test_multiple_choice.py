"""The multiple-choice verifier."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers import Item, verify_sync
from quintain.verifiers.rules.choices import chosen_letters

CAPITALS = {"answer": "B", "choices": ["Paris", "Rome", "Oslo", "None of these"]}
CHOSEN = [
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("**B**", "B"),
    ("$B$", "B"),
    ("B) Rome", "B"),
    ("(B) Rome", "B"),
    ("B. Rome", "B"),
    ("**B.** Rome", "B"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{(B)}}", "B"),
    (r"\boxed{B. Rome}", "B"),
    (r"First \boxed{A}, no: \boxed{B}", "B"),
    ("The answer is B.", "B"),
    ("The answer is **(B)**.", "B"),
    ("The correct answer is option B, since it is.", "B"),
    ("The correct option is D.", "D"),
    ("**Answer:** C", "C"),
    ("Answer: A\nNo, wait.\nAnswer: C", "C"),
    ("The answer is B, because A is a city.", "B"),
    ("The answer is B, I think.", "B"),
    ("I weigh it all.\n\nB", "B"),
    ("Long thought.\nC. Oslo", "C"),
    ("C. Oslo\n\nBecause Oslo is in Norway.", "C"),
    ("I choose option (b)", "B"),
    ("I pick C.", "C"),
    ("（Ｂ）", "B"),
    (r"$\textbf{(C)}\ 25$", "C"),
    ("Choice D", "D"),
    ("Thus, B is the correct answer.", "B"),
    ("the answer is therefore B", "B"),
    ("It is not A because that makes no sense, so I think it's B", "B"),
    ("I pick letter D", "D"),
    ("Final answer - B", "B"),
    ("Die Antwort ist C.", "C"),
    ("<answer>B</answer>", "B"),
    ("The answer is B (not A).", "B"),
    ("B不是 A", "B"),
    ("B。不是 A", "B"),
    ("The answer is B.\n\nA is wrong, C is wrong.", "B"),
    # No choice at all, or more than one
    ("B is wrong", ""),
    ("B isn't right", ""),
    ("B\nActually C", ""),
    ("I don't think B is the correct answer", ""),
    ("The answer is anything but B", ""),
    ("I do not believe it's B", ""),
    ("A dog", ""),
    ("I think so", ""),
    ("The answer is a dog.", ""),
    ("The answer is not B", ""),
    ("Bee", ""),
    ("", ""),
    (r"\boxed{}", ""),
    ("The answer is A or B.", "AB"),
    ("The answer is (A) and (C).", "AC"),
    (r"\boxed{A, B}", "AB"),
    ("A/B", "AB"),
    (r"\boxed{A} or \boxed{B}", "AB"),
    (r"\boxed{(A) 12 (B) 25}", "AB"),
    ("The answer is (A) or option (b).", "AB"),
    ("I choose A; B", "AB"),
    ("The answer is B. A is also correct.", "AB"),
    ("The answer is B. A could be right too.", "AB"),
    ("The answer is B. I am sure of it.", "B"),
    ("The answer is B. Wait, no, C.", "BC"),
    ("The answer is B. That is wrong.", ""),
    ("The answer is B. No other option fits.", "B"),
    ("Answer: B\nor A", "AB"),
    ("Answer: B\nMaybe A", "AB"),
    ("A² is it", ""),
    ("E = mc^2", ""),
    ("The answer is E = mc^2", ""),
    ("AB", ""),
    ("B1", ""),
    ("A. Paris\nB. Rome\nC. Oslo\nD. None", "ABCD"),
]


@pytest.mark.parametrize(("answer", "letters"), CHOSEN)
def test_the_letters_that_an_answer_chooses(answer: str, letters: str) -> None:
    assert "".join(sorted(chosen_letters(answer))) == letters


TABLE: list[tuple[str, Any, float | None]] = [
    ("B", "B", 1.0),
    ("B", "(b)", 1.0),
    ("B", 1, 1.0),
    ("A", 1, 0.0),
    ("A or B", "B", 0.0),
    ("Rome", CAPITALS, 1.0),
    ("The last line decides:\nrome.", CAPITALS, 1.0),
    ("Paris", CAPITALS, 0.0),
    ("E", CAPITALS, 0.0),
    ("<think>A</think>B", CAPITALS, 1.0),
    ("D. Both (A) and (B)", {"answer": "D", "choices": ["x", "y", "z", "Both (A) and (B)"]}, 1.0),
    ("D. Both (A) and (B)", {"answer": "D", "choices": ["x", "y", "z", "w"]}, 0.0),
    ("B", "AB", None),
    ("B", 26, None),
    ("B", True, None),
    ("B", None, None),
    ("B", {"answer": "E", "choices": ["x", "y"]}, None),
    ("B", {"answer": "A", "choices": "xy"}, None),
]


@pytest.mark.parametrize(("answer", "reference", "score"), TABLE)
def test_the_table(answer: str, reference: Any, score: float | None) -> None:
    [verdict] = verify_sync("multiple_choice", [Item(answer, reference)])
    assert verdict.score == score


CONNECTORS = [" or maybe ", ", or perhaps ", " (or ", " or else ", ", alternatively ", " but could be ", " as well as "]
CONNECTORS += [
    " + ",
    "|",
    "\\",
    " -> ",
    " unless ",
    "; also ",
    ". Maybe ",
    ". It could also be ",
    " ∨ ",
    " xor ",
    " / ",
    "\nor ",
    ". Possibly also ",
    " … ",
]


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from(CONNECTORS), st.booleans())
def test_no_connector_makes_one_of_two_letters(one: str, other: str, connector: str, announced: bool) -> None:
    text = f"{'The answer is ' if announced else ''}{one}{connector}{other}{')' if '(' in connector else ''}"
    if one != other:
        assert chosen_letters(text) != frozenset(one), text
    assert chosen_letters(text) <= {one, other}


def test_another_choices_text_is_a_hedge_and_ones_own_is_a_choice() -> None:
    places = ["Paris", "Rome", "Oslo"]
    texts = [
        "The answer is Rome.",
        "Answer: Rome",
        "B - Rome",
        "The answer is B (Rome)",
        "The answer is B or Paris",
        "A) Rome",
    ]
    found = ["".join(sorted(chosen_letters(text, places))) for text in texts]
    assert found == ["B", "B", "B", "B", "AB", "AB"]


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"))
def test_hedging_between_two_letters_never_scores(one: str, other: str) -> None:
    if one != other:
        for text in (f"{one} or {other}", f"The answer is {one} or {other}.", rf"\boxed{{{one},{other}}}"):
            for right in (one, other):
                [verdict] = verify_sync("multiple_choice", [Item(text, right)])
                assert verdict.score == 0.0
