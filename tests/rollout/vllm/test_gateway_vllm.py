"""The gateway over real vLLM: OpenAI's client drives the policy, and transformers explains every recorded token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Engine, Sampling
from quintain.trajectory import Trajectory, to_segments

from ..gateway.stage import ADD, staged
from . import real

pytestmark = pytest.mark.needs_vllm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with real.opened(real.experiment(model), tmp_path_factory.mktemp("logs")) as opened:
        yield opened


def sound(trajectory: Trajectory) -> None:
    """Every sampled token is in one segment, with the log-probability that transformers gives it there."""
    segments = to_segments(trajectory)
    assert sum(int(segment.mask.sum()) for segment in segments) == trajectory.output_tokens > 0
    for segment in segments:
        sampled = segment.mask[1:]
        assert np.abs(segment.logprobs[1:] - real.logprobs(0, segment.ids))[sampled].max() < 1e-4


async def test_openai_s_client_drives_vllm_and_every_token_is_explained(engine: Engine, model: Path) -> None:
    async def talk(client: Any, name: str, *, streaming: bool) -> None:
        messages: list[Any] = [{"role": "system", "content": name}]
        for turn in range(3):
            messages.append({"role": "user", "content": f"{turn}?"})
            asked: dict[str, Any] = {"model": "policy", "messages": messages, "tools": [ADD]}
            answer = await client.chat.completions.create(**asked, stream=streaming)
            if streaming:
                said = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
                messages.append({"role": "assistant", "content": said})
            else:
                messages.append(answer.choices[0].message)

    chat = TemplateChat(load_tokenizer(str(model)))
    # one test, one event loop: the engine belongs to it, and is closed with the gateway
    async with staged(engine, chat=chat, sampling=Sampling(10)) as stage:
        session, client = await stage.open()
        await asyncio.gather(talk(client, "one", streaming=False), talk(client, "two", streaming=True))
        trajectory = await stage.reward(session, 1.0)
        forks = [turn.fork for turn in trajectory.turns]
        assert forks == [None, None, None, "agent_started_conversation", None, None]
        assert len(to_segments(trajectory)) == 2
        sound(trajectory)

        session, client = await stage.open()
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        answer = await client.chat.completions.create(model="policy", messages=messages, n=2, logprobs=True)
        messages += [answer.choices[1].message, {"role": "user", "content": "and?"}]
        await client.chat.completions.create(model="policy", messages=messages)
        messages[1] = {"role": "assistant", "content": "as I have it"}
        await client.chat.completions.create(model="policy", messages=messages)
        trajectory = await stage.reward(session, 0.0)
        assert sorted(str(turn.fork) for turn in trajectory.turns) == [
            "None", "None", "agent_resampled", "agent_rewrote_history",
        ]  # fmt: skip
        sound(trajectory)
