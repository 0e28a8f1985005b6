"""The checker finds each flaw it looks for, and none where there is none."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from quintain.envs import (
    Action,
    EndlessTasks,
    Environment,
    FailureError,
    LocalClient,
    MathEnv,
    Message,
    Observation,
    Step,
    Task,
    check_environment,
    resolve,
    user,
)
from quintain.failure import Failure, FailureKind, Stage

SAMPLES = Path(__file__).parent / "samples.py"


class Sound(Environment):
    """Nothing is wrong with it."""

    turn = 0

    async def reset(self, task, *, seed):
        self.task, self.turn = task, 0
        return Observation(task.prompt)

    async def step(self, action):
        self.turn += 1
        return Step(Observation((user("go on"),)), 0.0, self.turn == 2, info={"turn": self.turn})

    @classmethod
    def tasks(cls, split):
        return [Task(f"task {i}", (user("?"),), str(i)) for i in range(3)]


class Moody(Sound):
    """Its rewards depend on nothing."""

    ticks = itertools.count()

    async def step(self, action):
        return Step(Observation(), next(self.ticks), True)


class Chatty(Sound):
    """Shows the reference while the episode runs."""

    async def reset(self, task, *, seed):
        return Observation(task.prompt, info={"debug": [{"gold": task.reference}]})


class Generous(Sound):
    """Shows it in the tasks."""

    @classmethod
    def tasks(cls, split):
        return [Task(f"task {i}", (user("?"),), i, info={"answer": i}) for i in range(3)]


class Silent(Sound):
    async def reset(self, task, *, seed):
        return Observation()


class Opaque(Sound):
    async def reset(self, task, *, seed):
        return Observation(task.prompt, info={"x": object})


class Fragile(Sound):
    async def step(self, action):
        return Step(Observation(), float("nan"), True)


class Empty(Sound):
    @classmethod
    def tasks(cls, split):
        return []


class Forgetful(Sound):
    @classmethod
    def tasks(cls, split):
        drawn = itertools.count()
        return EndlessTasks(lambda index: Task(str(next(drawn)), (user("?"),), 1))


class Misspelt(Sound):
    @classmethod
    def tasks(cls, split):
        return [Task("one", (Message("usr", "?"),), 1)]


class Broken(Sound):
    @classmethod
    def tasks(cls, split):
        raise FailureError(Failure.of(FailureKind.CRASHED, Stage.TASKS, "no disk"))


@pytest.mark.parametrize("cls", [Sound, MathEnv])
async def test_a_sound_environment_has_no_problems(cls):
    assert await check_environment(cls) == []


@pytest.mark.parametrize(
    ("cls", "complaint"),
    [
        (Moody, "the same seed and actions gave two different episodes"),
        (Chatty, "the info of its tasks or observations shows the reference"),
        (Generous, "the info of its tasks or observations shows the reference"),
        (Silent, "the first observation has no message"),
        (Opaque, "an observation's info['x'] is of type type"),
        (Fragile, "the reward must be a finite number, not nan"),
        (Empty, "split 'train' has no tasks"),
        (Forgetful, "gives other tasks at the same index the second time"),
        (Misspelt, "the role must be one of system, user, assistant, tool, not 'usr'"),
        (Broken, "split 'train' cannot be read: crashed in tasks: no disk"),
    ],
)
async def test_each_flaw_is_named(cls, complaint):
    problems = await check_environment(cls)
    assert any(complaint in problem for problem in problems), problems


async def test_a_client_that_answers_after_the_end_is_caught():
    class Raw:
        """Hands the class out without the rules around it."""

        def episode(self):
            return Endless()

        def tasks(self, split):
            return Sound.tasks(split)

        async def aclose(self):
            pass

    class Endless(Sound):
        async def step(self, action):
            return Step(Observation(), 0.0, True)

    problems = await check_environment(Raw())
    assert any("a step after the end was answered instead of refused" in problem for problem in problems)


async def test_a_turn_counter_that_happens_to_equal_a_reference_is_no_leak():
    assert await check_environment(LocalClient(Sound), answers=["1"]) == []


async def test_a_probe_that_fails_at_reset_is_reported_and_the_check_goes_on():
    problems = await check_environment(resolve(f"{SAMPLES}:Probe"), tasks=2)
    assert any("crashed in reset" in problem for problem in problems)


async def test_a_turn_in_play_keeps_a_local_environment_from_another():
    async with LocalClient(resolve(f"{SAMPLES}:Probe")) as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)
        playing = asyncio.create_task(env.step(Action.text("hang")))
        await asyncio.sleep(0)
        with pytest.raises(FailureError, match="out of order: turn 0 is being played"):
            await env.step(Action.text("hello"))
        await env.close()
        with pytest.raises(FailureError, match="cancelled"):
            await playing
