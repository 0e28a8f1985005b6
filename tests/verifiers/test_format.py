"""The format verifier."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.rules.format import FormatOptions, FormatVerifier

THINK_ANSWER = {"thinking": "required", "tags": ["answer"], "nothing_outside": True}
TABLE: list[tuple[str, dict[str, Any], float]] = [
    ("anything", {}, 1.0),
    ("<think>x</think>y", {}, 1.0),
    ("<think>x", {}, 0.0),
    ("x</think>y", {}, 0.0),
    ("x</think>y", {"prefilled": True}, 1.0),
    ("no end", {"prefilled": True}, 0.0),
    ("<think>a</think><think>b</think>", {}, 0.0),
    ("first <think>x</think>y", {}, 0.0),
    ("</think><think>", {}, 0.0),
    ("<think>x</think>y", {"thinking": "forbidden"}, 0.0),
    ("y", {"thinking": "forbidden"}, 1.0),
    ("y", {"thinking": "required"}, 0.0),
    ("<think> </think>y", {"thinking": "required"}, 0.0),
    ("<think>x</think>\n<answer>5</answer>\n", THINK_ANSWER, 1.0),
    ("<think>x</think> so <answer>5</answer>", THINK_ANSWER, 0.0),
    ("<think>x</think><answer>5</answer><answer>6</answer>", THINK_ANSWER, 0.0),
    ("<think>x</think><answer></answer>", THINK_ANSWER, 0.0),
    ("<think>x</think><answer>5", THINK_ANSWER, 0.0),
    ("<think>x<answer>5</answer></think>", THINK_ANSWER, 0.0),
    ("<a>1</a><b>2</b>", {"tags": ["a", "b"]}, 1.0),
    ("<b>2</b><a>1</a>", {"tags": ["a", "b"]}, 0.0),
    ("<a>1<b>2</b></a>", {"tags": ["a", "b"]}, 0.0),
    (r"so \boxed{5}", {"one_answer": "boxed"}, 1.0),
    (r"\boxed{5} or \boxed{6}", {"one_answer": "boxed"}, 0.0),
    (r"\boxed{}", {"one_answer": "boxed"}, 0.0),
    (r"<think>\boxed{4}</think>\boxed{5}", {"one_answer": "boxed"}, 1.0),
    ("so\n#### 5", {"one_answer": "hashes"}, 1.0),
    ("#### 4\n#### 5", {"one_answer": "hashes"}, 0.0),
    ("####", {"one_answer": "hashes"}, 0.0),
    ("<think>x</think> so <answer>5</answer>", {**THINK_ANSWER, "partial": True}, 2 / 3),
]


@pytest.mark.parametrize(("answer", "options", "score"), TABLE)
def test_the_table(answer: str, options: dict[str, Any], score: float) -> None:
    [verdict] = verify_sync("format", [Item(answer, None)], options)
    assert verdict.score == pytest.approx(score)


def test_the_detail_names_the_rules() -> None:
    [verdict] = verify_sync("format", [Item("<answer>5</answer>!", None)], THINK_ANSWER)
    assert verdict.detail["rules"] == {"thinking": False, "tags": True, "nothing_outside": False}


@pytest.mark.parametrize(
    "options",
    [
        {"tags": ["a", "a"]},
        {"tags": ["think"]},
        {"tags": ["<a>"]},
        {"nothing_outside": True},
        {"prefilled": True, "thinking": "forbidden"},
        {"one_answer": "two"},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QuintainError, match="the format verifier: "):
        get_verifier("format", **options)


@given(st.text(alphabet="ab<>/", max_size=12), st.text(min_size=1, max_size=12))
def test_a_layout_built_to_order_passes_and_one_with_a_second_answer_does_not(thought: str, answer: str) -> None:
    verifier = FormatVerifier(FormatOptions(thinking="required", tags=("answer",), nothing_outside=True))
    text = f"<think>.{thought}</think>\n<answer>.{answer}</answer>"
    if "think>" in thought + answer or "answer>" in thought + answer:
        return
    assert verifier.judge(text, None).score == 1.0
    assert verifier.judge(f"{text}<answer>.{answer}</answer>", None).score == 0.0
