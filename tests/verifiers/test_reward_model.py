"""The reward model, with a tiny classifier made from a seed."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Cost
from quintain.verifiers.models.reward_model.verifier import RewardModelOptions, RewardModelVerifier, mapped


@pytest.fixture(scope="module")
def model(tiny_classifier: str) -> str:
    return tiny_classifier


def rewards_by_hand(folder: str, texts: list[list[str]]) -> list[float]:
    """Each text alone, without our code."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [float(classifier(**tokenizer(*text, return_tensors="pt")).logits[0, 0]) for text in texts]


TEXTS = ["good", "very very very good so the answer is a", "bad", "the answer is b", "b " * 60, "c a b"]


async def test_scores_are_the_models_own_whatever_the_batches_and_the_order(model: str) -> None:
    expected = rewards_by_hand(model, [["is a b", text.strip()] for text in TEXTS])
    for batch_size in (1, 4, 16):
        async with get_verifier("reward_model", model=model, batch_size=batch_size) as verifier:
            assert verifier.cost is Cost.MODEL
            verdicts = await verifier.verify([Item(text, "is a b") for text in TEXTS])
        assert [verdict.detail["reward"] for verdict in verdicts] == pytest.approx(expected, abs=1e-5)
        assert [verdict.score for verdict in verdicts] == pytest.approx(
            [1 / (1 + math.exp(-x)) for x in expected], abs=1e-5
        )


async def test_the_reference_is_the_prompt_in_any_of_its_forms(model: str) -> None:
    messages = [{"role": "user", "content": "is a b"}]
    references: list[Any] = [
        "is a b",
        {"prompt": "is a b"},
        {"messages": messages},
        None,
        {"messages": [{"role": "user"}]},
        5,
    ]
    async with get_verifier("reward_model", model=model) as verifier:
        verdicts = await verifier.verify([Item("<think>bad</think>good", reference) for reference in references])
    alone = rewards_by_hand(model, [["is a b", "good"], ["good"]])
    found = [verdict.detail["reward"] for verdict in verdicts[:4]]
    assert found == pytest.approx([alone[0]] * 3 + [alone[1]], abs=1e-5)
    assert [verdict.outcome for verdict in verdicts[4:]] == [Outcome.BAD_REFERENCE] * 2


async def test_what_is_too_long_empty_or_breaks_the_model_costs_only_itself(model: str) -> None:
    answers = ["good", "a " * 100, "a " * 300, "", "<think>a", "bad\ud800"]
    async with get_verifier("reward_model", model=model, max_tokens=1_000) as verifier:
        outcomes = [verdict.outcome for verdict in await verifier.verify([Item(answer, None) for answer in answers])]
    # 300 tokens are beyond the model's own 256 positions: the pass raises, and the items are tried one by one
    assert outcomes[2:5] == [Outcome.CRASHED, Outcome.UNPARSABLE, Outcome.UNPARSABLE]
    assert all(outcome in (Outcome.PARTIAL, Outcome.CORRECT, Outcome.WRONG) for outcome in outcomes[:2] + outcomes[5:])
    async with get_verifier("reward_model", model=model, max_tokens=50) as verifier:
        [verdict] = await verifier.verify([Item("a " * 100, None)])
    assert verdict.outcome is Outcome.UNPARSABLE


async def test_the_event_loop_stays_free_and_a_late_pass_is_a_timeout(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    async with RewardModelVerifier(RewardModelOptions(model=model)) as verifier:
        [before] = await verifier.verify([Item("good", None)])
        classifier = verifier._classifier
        assert classifier is not None
        rewards = classifier.rewards
        monkeypatch.setattr(classifier, "rewards", lambda rows: (go.wait(30), rewards(rows))[1])
        started = time.perf_counter()
        waiting = asyncio.create_task(verifier.verify([Item("good", None)], deadline_s=0.2))
        await asyncio.sleep(0)
        assert time.perf_counter() - started < 0.15
        [late] = await waiting
        assert late.outcome is Outcome.TIMEOUT
        go.set()
        [after] = await verifier.verify([Item("good", None)])
    assert after.score == before.score
    with pytest.raises(QuintainError, match="closed"):
        await verifier.verify([])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reward-model")]


async def test_a_model_that_cannot_be_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    async with get_verifier("reward_model", model=str(tmp_path / "nope")) as verifier:
        with pytest.raises(QuintainError, match="nope"):
            await verifier.verify([Item("good", None)])
        assert await verifier.verify([]) == []


async def test_of_several_labels_one_must_be_named(make_tiny_classifier: Any, tmp_path: Path) -> None:
    folder = make_tiny_classifier(tmp_path, labels=3)
    for label, says in ((None, "has 3 labels"), (3, "none numbered 3")):
        async with get_verifier("reward_model", model=folder, label=label) as verifier:
            with pytest.raises(QuintainError, match=says):
                await verifier.verify([Item("good", None)])
    async with get_verifier("reward_model", model=folder, label=2) as verifier:
        [verdict] = await verifier.verify([Item("good", None)])
    assert verdict.score is not None


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_both_maps_stay_in_the_unit_interval_and_never_turn_round(one: float, other: float) -> None:
    for options in (
        RewardModelOptions(model="m", center=1.0, scale=2.0),
        RewardModelOptions(model="m", map="linear", low=-3.0),
    ):
        low, high = sorted((one, other))
        assert 0.0 <= mapped(low, options) <= mapped(high, options) <= 1.0


def test_the_maps_are_the_documented_ones() -> None:
    sigmoid = RewardModelOptions(model="m", center=1.0, scale=2.0)
    assert mapped(1.0, sigmoid) == 0.5
    assert mapped(3.0, sigmoid) == pytest.approx(1 / (1 + math.exp(-1)))
    assert mapped(-3.0, sigmoid) == pytest.approx(1 / (1 + math.exp(2)))
    linear = RewardModelOptions(model="m", map="linear", low=-1.0, high=3.0)
    assert [mapped(x, linear) for x in (-5.0, -1.0, 0.0, 3.0, 9.0)] == [0.0, 0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize(
    "options", [{}, {"model": ""}, {"model": "m", "high": -1.0}, {"model": "m", "scale": 0}, {"model": "m", "map": "x"}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QuintainError, match="the reward_model verifier: "):
        get_verifier("reward_model", **options)
