"""Many episodes at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from quintain.envs import Action, EnvironmentLimits
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode
from quintain.trajectory import Ending

from ..fake_engine import FakeEngine
from ..rollout.stage import CHAT


@pytest.mark.slow
async def test_a_thousand_episodes_at_once_share_a_few_connections(serve):
    server = serve("Guess")
    async with server.client(max_connections=64) as client:
        tasks = client.tasks("train")

        async def one(index: int) -> float:
            env = client.episode()
            await env.reset(tasks[index], seed=index)
            step = await env.step(Action.text(str((index + 1) % 9 + 1)))
            await env.close()
            return step.reward

        assert await asyncio.gather(*(one(index) for index in range(1000))) == [1.0] * 1000
    assert server.metric('episodes_total{how="done"}') == 1000
    assert server.metric("episodes_live") == 0


async def test_more_episodes_than_slots_and_connections_all_come_to_their_end(serve):
    # those that wait for a slot hold connections, and those that hold slots need one to go on
    server = serve("Guess", limits=EnvironmentLimits(max_episodes=2, queue=100))
    async with server.client(max_connections=4) as client:
        tasks = client.tasks("train")

        async def one(index: int) -> int:
            env, turns = client.episode(), 0
            await env.reset(tasks[index], seed=index)
            while not (await env.step(Action.text("0"))).ended:
                turns += 1
            await env.close()
            return turns

        assert await asyncio.gather(*(one(index) for index in range(40))) == [2] * 40


async def test_after_a_thousand_episodes_truncated_by_max_turns_no_session_is_left(serve):
    slots, engine = 32, FakeEngine(words=128)
    server = serve("Probe", limits=EnvironmentLimits(max_episodes=slots, queue=1))  # one that is left stands in the way
    async with server.client() as client:
        task = client.tasks("train")[0]
        spec = EpisodeSpec("", "g", task, 0, 0, 0, Sampling(1), max_turns=1, max_length=512)
        specs = (replace(spec, id=f"e{number}", seed=number) for number in range(1000))

        async def play() -> list[Ending]:
            return [
                (await run_episode(spec, make_env=client.episode, engine=engine, chat=CHAT)).ending for spec in specs
            ]

        played = [ending for some in await asyncio.gather(*(play() for _ in range(slots))) for ending in some]
    assert played == [Ending.TRUNCATED] * 1000
    server.wait_metric("episodes_live", lambda live: live == 0)
    assert server.metric('episodes_total{how="closed"}') == 1000
    assert server.metric("answers_bytes") == server.metric("episodes_queued") == 0
