"""Many episodes at once."""

from __future__ import annotations

import asyncio

import pytest

from quintain.envs import Action, EnvironmentLimits


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
