"""Environments that hang and block: their deadline is kept, and nobody else pays for it."""

from __future__ import annotations

import time

import pytest

from quintain.envs import Action, EnvironmentLimits, FailureError, Task, user
from quintain.failure import FailureKind, Stage

# A deadline and the second within which a slot must be free again; the machine that runs the tests may be busy.
STEP_S = 1.0
FREE_WITHIN_S = 1.0
SLACK_S = 1.5


@pytest.fixture(scope="module")
def strict(serve_all):
    """One slot and short deadlines. Its tests leave it as they found it: two workers, the slot free."""
    return serve_all("Probe", limits=EnvironmentLimits(step_s=STEP_S, reset_s=STEP_S, max_episodes=1))


@pytest.mark.parametrize(("says", "killed"), [("hang", False), ("block", True), ("sleep 1000", True), ("deaf", True)])
async def test_a_step_that_hangs_is_ended_and_its_slot_is_free_within_a_second(strict, says, killed, opened, failed):
    strict.wait_metric("workers", lambda n: n == 2)  # the spare is ready
    restarts = strict.metric("worker_restarts")
    async with strict.client() as client:
        env = await opened(client)
        began = time.monotonic()
        failure = await failed(env, says)
        assert (failure.kind, failure.stage, failure.retryable) == (FailureKind.TIMEOUT, Stage.STEP, True)
        next_one = await opened(client)  # there is one slot
        took = time.monotonic() - began
        assert STEP_S <= took < STEP_S + FREE_WITHIN_S + SLACK_S
        assert (await next_one.step(Action.text("end"))).reward == 1.0
    strict.wait_metric("worker_restarts", lambda n: n == restarts + killed)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("exit", FailureKind.CRASHED),
        ("quit", FailureKind.CRASHED),
        ("raise", FailureKind.CRASHED),
        ("reward nan", FailureKind.INVALID),
        ("nothing", FailureKind.INVALID),
    ],
)
async def test_a_step_that_dies_or_says_nonsense_costs_its_own_episode_and_its_slot_is_free_at_once(
    strict, says, kind, opened, failed
):
    strict.wait_metric("workers", lambda n: n == 2)
    async with strict.client() as client:
        assert (await failed(await opened(client), says)).kind is kind
        began = time.monotonic()
        next_one = await opened(client)  # there is one slot
        assert time.monotonic() - began < FREE_WITHIN_S + SLACK_S
        assert (await next_one.step(Action.text("end"))).reward == 1.0


@pytest.mark.parametrize(("task", "killed"), [(2, False), (3, True)])
async def test_a_reset_that_hangs_is_ended_too(strict, task, killed, opened):
    strict.wait_metric("workers", lambda n: n == 2)
    restarts = strict.metric("worker_restarts")
    async with strict.client() as client:
        with pytest.raises(FailureError) as error:
            await opened(client, task)
        assert (error.value.failure.kind, error.value.failure.stage) == (FailureKind.TIMEOUT, Stage.RESET)
        assert (await (await opened(client)).step(Action.text("end"))).reward == 1.0
    assert strict.metric("worker_restarts") == restarts + killed


@pytest.mark.parametrize("task", ["exit", "quit", "raise"])
async def test_a_reset_that_dies_costs_its_own_episode_and_its_slot_is_free_at_once(strict, task, opened):
    strict.wait_metric("workers", lambda n: n == 2)
    async with strict.client() as client:
        began = time.monotonic()
        with pytest.raises(FailureError) as error:
            await client.episode().reset(Task(task, (user("?"),), "x"), seed=0)
        assert (error.value.failure.kind, error.value.failure.stage) == (FailureKind.CRASHED, Stage.RESET)
        assert (await (await opened(client)).step(Action.text("end"))).reward == 1.0
        assert time.monotonic() - began < FREE_WITHIN_S + SLACK_S


async def test_a_blocked_worker_takes_only_its_own_episodes_with_it(serve, failed):
    server = serve("Probe", workers=2, limits=EnvironmentLimits(step_s=STEP_S))
    server.wait_metric("workers", lambda n: n == 3)
    async with server.client() as client:
        tasks = client.tasks("train")
        episodes: dict[int, list] = {}
        for _ in range(4):
            env = client.episode()
            observation = await env.reset(tasks[0], seed=0)
            episodes.setdefault(observation.info["pid"], []).append(env)
        assert [len(envs) for envs in episodes.values()] == [2, 2]
        (blocker, neighbour), others = episodes.values()
        assert (await failed(blocker, "block")).kind is FailureKind.TIMEOUT
        for env in others:
            assert (await env.step(Action.text("end"))).reward == 1.0
        failure = await failed(neighbour, "hello")
        assert (failure.kind, failure.retryable) == (FailureKind.CRASHED, True)
