"""The gateway over the embedded engine: a tiny model samples, and scoring its segments gives what was recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.embedded.engine import EmbeddedEngine
from quintain.trajectory import Trajectory, to_segments

from ...tiny_llama import tiny_llama
from .stage import Stage, staged

MODEL = Path(__file__).parents[3] / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def chat() -> TemplateChat:
    from transformers import AutoTokenizer

    return TemplateChat(AutoTokenizer.from_pretrained(MODEL))


@pytest.fixture
async def stage(chat: TemplateChat) -> AsyncIterator[Stage]:
    """A random model over SmolLM2's vocabulary: what it says is no text that a tokenizer would encode so."""
    model = tiny_llama(0, words=49152, length=1024, initializer_range=0.1)
    engine = EmbeddedEngine(model, dtype="float32", max_batch=8)
    async with staged(engine, chat=chat, sampling=Sampling(32)) as made:
        yield made


async def sound(stage: Stage, trajectory: Trajectory) -> None:
    """Every sampled token is in one segment, with the log-probability that the model has for it there."""
    segments = to_segments(trajectory)
    assert sum(int(segment.mask.sum()) for segment in segments) == trajectory.output_tokens
    engine: Any = stage.gateway._calls._engine
    for segment, scored in zip(segments, await engine.score([s.ids for s in segments]), strict=True):
        sampled = segment.mask[1:]
        assert np.allclose(segment.logprobs[1:][sampled], scored[sampled], atol=1e-4)


async def test_a_long_conversation_is_one_segment_that_the_model_explains(stage: Stage, chat: TemplateChat) -> None:
    session, client = await stage.open(id="odd", seed=1)
    messages: list[Any] = [{"role": "system", "content": "Be odd."}]
    for turn in range(4):
        messages.append({"role": "user", "content": f"Question {turn}?"})
        answer = await client.chat.completions.create(model="policy", messages=messages, stream=turn % 2 == 1)
        if turn % 2 == 1:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
            messages.append({"role": "assistant", "content": text})
        else:
            messages.append(answer.choices[0].message)
    trajectory = await stage.reward(session, 0.5)
    assert [turn.fork for turn in trajectory.turns] == [None] * 4
    again = [chat.first([m]) for m in (turn.message for turn in trajectory.turns)]
    assert any(  # the test would prove nothing if the text were encoded back to what was sampled
        turn.output_ids.tobytes() not in ids.tobytes() for turn, ids in zip(trajectory.turns, again, strict=True)
    )
    (segment,) = to_segments(trajectory)
    assert int(segment.mask.sum()) == trajectory.output_tokens
    await sound(stage, trajectory)


async def test_sub_agents_choices_and_edits_at_once_leave_nothing_out(stage: Stage) -> None:
    session, client = await stage.open()

    async def agent(name: str, turns: int) -> None:
        messages: list[Any] = [{"role": "system", "content": name}]
        for turn in range(turns):
            messages.append({"role": "user", "content": f"{turn}"})
            answer = await client.chat.completions.create(model="policy", messages=messages, n=2)
            messages.append(answer.choices[turn % 2].message)
            if turn == 1:
                messages[2] = {"role": "assistant", "content": "as I have it"}

    await asyncio.gather(agent("one", 3), agent("two", 4), agent("three", 2))
    trajectory = await stage.reward(session)
    assert len(trajectory.turns) == 18
    forks = [turn.fork for turn in trajectory.turns]
    assert forks.count("agent_rewrote_history") == 2
    assert forks.count("agent_resampled") == 9
    assert forks.count("agent_started_conversation") == 2
    await sound(stage, trajectory)
