"""Forks of episodes, and one environment on several servers, with real ones behind real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from quintain.envs import Action, EnvClient, FailureError, RemoteEnv
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.serving.wire import ForkRequest
from quintain.failure import FailureKind, Stage

WRONG = "0"
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture
def page() -> dict[str, Any]:
    """What docs/serving.md defines."""
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), names)
    return names


@pytest.fixture(scope="module")
def guess(serve_all):
    return serve_all("Guess")


async def test_a_fork_goes_on_from_its_turn_and_disturbs_nobody(guess):
    async with guess.client() as client:
        env, task = client.episode(), client.tasks("train")[2]
        await env.reset(task, seed=5)
        first = await env.step(Action.text(WRONG))
        second = await env.step(Action.text(WRONG))
        again = await env.fork(1)
        assert await again.step(Action.text(WRONG)) == second
        right = await env.fork(1)
        found = await right.step(Action.text("4"))
        assert (found.reward, found.terminated) == (1.0, True)
        afresh = await env.fork(0)
        assert await afresh.step(Action.text(WRONG)) == first
        assert (await env.step(Action.text(WRONG))).truncated
        ended = await env.fork(2)  # of one that has ended, too
        assert (await ended.step(Action.text("4"))).reward == 1.0
        for each in (env, again, right, afresh, ended):
            await each.close()
    guess.wait_metric("episodes_live", lambda live: live == 0)


async def test_a_fork_may_be_asked_for_again_and_one_that_cannot_be_is_refused(guess):
    async with guess.client() as client:
        env = client.episode()
        with pytest.raises(FailureError, match="before the first reset"):
            await env.fork(0)
        await env.reset(client.tasks("train")[0], seed=0)
        await env.step(Action.text(WRONG))
        (episode,) = client._homes
        once = await client.fork(episode, ForkRequest(1, "mine"))
        assert await client.fork(episode, ForkRequest(1, "mine")) == once
        assert (once.episode_id, once.turn, once.state) == ("mine", 1, "running")
        for turn in (-1, 2):
            with pytest.raises(FailureError, match="turn is from 0 to 1") as refused:
                await env.fork(turn)
            assert refused.value.failure.kind is FailureKind.REJECTED
        await env.close()
        with pytest.raises(FailureError, match="the episode is closed"):
            await client.fork(episode, ForkRequest(0))


async def test_an_environment_that_answers_otherwise_the_second_time_cannot_be_forked(serve, opened):
    async with serve("Probe").client() as client:
        env = await opened(client)
        await env.step(Action.text("random"))
        with pytest.raises(FailureError, match="turn 0 was answered otherwise") as failed:
            await env.fork(1)
        assert (failed.value.failure.kind, failed.value.failure.stage) == (FailureKind.INVALID, Stage.RESET)
        assert (await (await env.fork(0)).step(Action.text("end"))).reward == 1.0


async def test_an_environment_that_can_fork_itself_is_asked_and_its_fork_goes_on_as_it_does(serve):
    server = serve("Drawing")
    async with server.client() as client:
        env = client.episode()
        await env.reset(client.tasks("train")[2], seed=5)
        first = await env.step(Action.text(WRONG))
        forks = [await env.fork(), await env.fork(1)]
        forks.append(await forks[0].fork())
        steps = [await each.step(Action.text(WRONG)) for each in (env, *forks)]
        assert steps == [steps[0]] * 4 != [first] * 4
        assert (await env.step(Action.text("4"))).reward == 1.0
        ends = [await each.step(Action.text(WRONG)) for each in forks]
        assert (ends, ends[0].truncated) == ([ends[0]] * 3, True)
        with pytest.raises(FailureError, match="turn 0 was answered otherwise"):  # it stands elsewhere by now
            await forks[0].fork(1)
    server.wait_metric("episodes_live", lambda live: live == 0)


@pytest.mark.parametrize(
    ("fork", "complaint"),
    [("raise", "crashed in reset: ValueError: no copies today"), ("itself", "must give another environment")],
)
async def test_a_fork_that_breaks_costs_the_request_alone(serve, fork, complaint):
    server = serve("Drawing", options={"fork": fork}, limits=EnvironmentLimits(max_episodes=2))
    async with server.client() as client:
        env = client.episode()
        await env.reset(client.tasks("train")[2], seed=5)
        for _ in range(3):  # more than there are slots
            with pytest.raises(FailureError, match=complaint):
                await env.fork()
        assert (await env.step(Action.text("4"))).reward == 1.0
    server.wait_metric("episodes_live", lambda live: live == 0)


async def test_of_several_servers_the_one_with_the_fewest_plays_and_a_dead_one_costs_its_own_episodes(serve):
    servers = [serve("Guess") for _ in range(2)]
    async with EnvClient([server.url for server in servers], patience_s=1.0) as client:
        task = client.tasks("train")[0]
        envs = [client.episode() for _ in range(6)]
        await asyncio.gather(*(env.reset(task, seed=0) for env in envs))
        assert [server.metric("episodes_live") for server in servers] == [3, 3]
        await envs[0].close()
        await envs[2].close()
        late = client.episode()
        await late.reset(task, seed=0)
        assert sorted(server.metric("episodes_live") for server in servers) == [2, 3]
        live = servers[0].metric("episodes_live")
        servers[0].process.kill()
        servers[0].process.wait()
        lost = 0
        for env in (envs[1], *envs[3:], late):
            with contextlib.suppress(FailureError):
                await env.step(Action.text("1"))
                continue
            lost += 1
        assert lost == live
        others = [client.episode() for _ in range(4)]
        await asyncio.gather(*(env.reset(task, seed=0) for env in others))
        assert servers[1].metric("episodes_live") == 4 + 5 - live
        assert (await client.metadata()).splits["heldout"] == 7
        assert client.places() == 2 * EnvironmentLimits().max_episodes
        assert client.tasks("heldout")[3].id == "heldout-3"
        for env in others:
            await env.close()


async def test_an_episode_that_has_ended_is_asked_about_on_its_own_server_until_it_is_let_go(serve):
    servers = [serve("Guess") for _ in range(2)]
    async with EnvClient([server.url for server in servers]) as client:
        task = client.tasks("train")[2]
        envs = [client.episode() for _ in servers]
        await asyncio.gather(*(env.reset(task, seed=0) for env in envs))
        assert [server.metric("episodes_live") for server in servers] == [1, 1]
        for env in envs:
            assert (await env.step(Action.text("4"))).terminated
            with pytest.raises(FailureError) as refused:
                await env.step(Action.text("4"))
            assert refused.value.failure.kind is FailureKind.REJECTED
            again = await env.fork(0)
            assert (await again.step(Action.text("4"))).reward == 1.0
            await again.close()
            await env.close()
        assert not client._homes


async def test_the_docs_play_and_fork_an_episode(serve, page):
    assert await page["play"](serve("math").url) == [0.0, 0.0]


async def test_two_addresses_in_one_text_are_two_servers(guess):
    env = RemoteEnv(f"{guess.url}, {guess.url}")
    await env.reset(env.tasks("train")[0], seed=0)
    assert (await env.step(Action.text(WRONG))).reward == -0.125
    await env.close()
