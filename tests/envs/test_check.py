"""The checker finds each flaw it looks for, and none where there is none."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from quintain.cli import cli
from quintain.envs import (
    Action,
    EndlessTasks,
    Environment,
    EnvironmentLimits,
    FailureError,
    LocalClient,
    MathEnv,
    Message,
    Observation,
    Step,
    Task,
    ToolEnv,
    check_environment,
    resolve,
    tool,
    user,
)
from quintain.envs.check import CHECKS, checks_of
from quintain.envs.registry import BUILT_IN
from quintain.failure import FailureKind, QuintainError, Stage
from quintain.loading import load_module

SAMPLES = Path(__file__).parent / "samples.py"
EXAMPLES = Path(__file__).parents[2] / "examples"


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


class Forgotten(Sound):
    """Its state is all its episodes'."""

    turns = 0

    async def reset(self, task, *, seed):
        Forgotten.turns = 0
        return Observation(task.prompt)

    async def step(self, action):
        Forgotten.turns += 1
        return Step(Observation((user("go on"),)), float(Forgotten.turns), Forgotten.turns == 3)


class Telling(Sound):
    """Says what would have been right, and goes on."""

    async def step(self, action):
        self.turn += 1
        return Step(Observation((user(f"No, it was {self.task.reference}."),)), 0.0, self.turn == 2)

    @classmethod
    def tasks(cls, split):
        return [Task(f"task {i}", (user("?"),), f"answer-{i}") for i in range(3)]


class Blabbing(ToolEnv):
    """One of its tools gives the answer away."""

    @classmethod
    def tasks(cls, split):
        return [Task(f"task {i}", (user("?"),), f"answer-{i}") for i in range(3)]

    async def reset(self, task, *, seed):
        self.task = task
        return await super().reset(task, seed=seed)

    @tool
    def wait(self, seconds: float) -> str:
        """Wait."""
        return f"{seconds} s have gone by"

    @tool
    def look_up(self, kind: Literal["word", "name"], times: int) -> str:
        """Look something up."""
        return f"{kind}: {self.task.reference}" * times

    def score(self, answer, reference):
        return float(answer == reference)


class Shallow(Sound):
    """A fork of it counts the same turns."""

    async def reset(self, task, *, seed):
        self.said = []
        return Observation(task.prompt)

    async def step(self, action):
        self.said.append(action)
        return Step(Observation((user(str(len(self.said))),)), 0.0, len(self.said) >= 3)

    async def fork(self):
        return copy.copy(self)


class Forking(Shallow):
    """A fork of it counts its own."""

    async def fork(self):
        return copy.deepcopy(self)


class Whimsical(Sound):
    """Its verdict on what is right depends on nothing."""

    ticks = itertools.count(1)

    async def step(self, action):
        return Step(Observation(), float(action.content == self.task.reference and next(self.ticks)), True)

    @classmethod
    def solution(cls, task):
        return [Action.text(task.reference)]

    @classmethod
    def tasks(cls, split):
        return [Task(f"task {i}", (user("?"),), f"answer-{i}") for i in range(3)]


class Unsolved(Sound):
    """Its own solution earns less than nothing at all."""

    async def step(self, action):
        return Step(Observation(), float(not action.content), True)

    @classmethod
    def solution(cls, task):
        return [Action.text(task.reference)]


class Unending(Sound):
    """Its own solution does not end it."""

    @classmethod
    def solution(cls, task):
        return [Action.text(task.reference)]


class Equal(Unsolved):
    """Pays for anything."""

    async def step(self, action):
        return Step(Observation(), 1.0, True)


class Credulous(Unsolved):
    """Pays what it is told to."""

    async def step(self, action):
        forged = '"reward": 1.0' in action.content
        return Step(Observation(), 1.0 if forged else float(action.content == self.task.reference), True)


class Bribed(Unsolved):
    """Pays whoever calls for it."""

    async def step(self, action):
        called = [call for call in action.message.tool_calls if call.function.name == "set_reward"]
        return Step(Observation(), float(bool(called) or action.content == self.task.reference), True)


class Once(Sound):
    """Can be closed once."""

    closed = False

    async def close(self):
        if self.closed:
            raise ValueError("closed already")
        self.closed = True


class Clinging(Sound):
    """Does not let go."""

    async def close(self):
        await asyncio.Event().wait()


class Garbled(Sound):
    """Says what is no text for anybody else."""

    async def step(self, action):
        return Step(Observation((user("\ud800"),)), 0.0, True)


class Hanging(Sound):
    async def step(self, action):
        await asyncio.Event().wait()


class Enormous(Sound):
    """Says more than a gymnasium environment may."""

    @classmethod
    def tasks(cls, split):
        return [Task("one", (user("x" * (1 << 20) + "x"),))]


class Elsewhere(Sound):
    """Pays in this process, and not in a worker."""

    async def step(self, action):
        return Step(Observation(), float(os.environ["CHECKED_IN"] == str(os.getpid())), True)


class Blocking(Sound):
    async def step(self, action):
        while True:
            pass


class Dying(Sound):
    async def step(self, action):
        os._exit(3)


class Broken(Sound):
    @classmethod
    def tasks(cls, split):
        raise FailureError.of(FailureKind.CRASHED, Stage.TASKS, "no disk")


@pytest.mark.parametrize("cls", [Sound, Forking, MathEnv])
async def test_a_sound_environment_has_no_problems(cls):
    assert await check_environment(cls) == []


FLAWS = [
    (Moody, "determinism", "the same seed and actions gave two different episodes"),
    (Chatty, "secrecy", "the info of its tasks or observations shows the reference"),
    (Generous, "secrecy", "the info of its tasks or observations shows the reference"),
    (Telling, "secrecy", "or what is said does"),
    (Blabbing, "secrecy", "or what is said does"),
    (Whimsical, "determinism", "the solution of task 'task 0': the same seed and actions gave two different"),
    (Shallow, "fork", "a fork of task 'task 0' with the answer '': it goes on otherwise"),
    (Silent, "messages", "the first observation has no message"),
    (Opaque, "episodes", "an observation's info['x'] is of type type"),
    (Fragile, "episodes", "the reward must be a finite number, not nan"),
    (Hanging, "episodes", "timeout in step: the environment's step took too long"),
    (Empty, "tasks", "split 'train' has no tasks"),
    (Forgetful, "tasks", "gives other tasks at the same index the second time"),
    (Misspelt, "messages", "the role must be one of system, user, assistant, tool, not 'usr'"),
    (Broken, "tasks", "split 'train' cannot be read: crashed in tasks: no disk"),
    (Forgotten, "isolation", "played at once, are other than each alone"),
    (Unsolved, "solution", "earns 0, less than the answer '': 1"),
    (Unending, "solution", "the episode goes on after its last action"),
    (Equal, "floor", "the answer '' earns as much as the solutions (3)"),
    (Credulous, "floor", "earns as much as the solutions (3)"),
    (Bribed, "floor", "the answer '' and a call of set_reward earns as much as the solutions (3)"),
    (Once, "close", "ValueError: closed already"),
    (Clinging, "sessions", "were not closed after the end"),
    (Enormous, "gymnasium", "AssertionError"),
    (f"{__file__}:Elsewhere", "faces", "the other way"),
    (Garbled, "faces", "the other way: invalid in step"),
    (f"{__file__}:Blocking", "episodes", "blocked its process past the deadline; the process was killed"),
    (f"{__file__}:Dying", "episodes", "the process that ran the environment died"),
]


@pytest.mark.parametrize(("env", "name", "complaint"), FLAWS, ids=[str(flaw[0]).rpartition(".")[2] for flaw in FLAWS])
async def test_each_flaw_fails_its_check_and_says_why(env, name, complaint, monkeypatch):
    monkeypatch.setenv("CHECKED_IN", str(os.getpid()))
    quick = {"tasks": 1, "answers": [""]} if env is Clinging or isinstance(env, str) else {}
    step_s = 0.3 if env in (Clinging, Hanging) else 3 if "Blocking" in str(env) else 20
    found = {check.name: check for check in await checks_of(env, step_s=step_s, **quick)}
    assert tuple(found) == tuple(CHECKS)
    assert any(complaint in problem for problem in found[name].problems), found


async def test_each_tool_is_called_however_few_turns_are_played():
    assert any("or what is said does" in problem for problem in await check_environment(Blabbing, max_turns=1))


async def test_every_check_has_an_environment_that_fails_it():
    assert {name for _, name, _ in FLAWS} == set(CHECKS) - {"end"}  # which only a server may get wrong: the next test


OPTIONS = {
    "code": {"data": str(EXAMPLES / "code_problems.jsonl"), "heldout": 2},
    "data": {"data": "rows.jsonl", "prompt": "question", "verifier": "math", "heldout": 2},
    "gymnasium": {"game": "FrozenLake-v1"},
    "harbor": {"path": "task", "shells": 2},
    "reasoning_gym": {"family": "basic_arithmetic", "heldout": 3},
    "shell": {"kinds": ["write"]},
    "textarena": {"game": "GuessTheNumber-v0"},
}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_every_built_in_environment_passes(name, tmp_path, monkeypatch):
    from .harbor_folders import HELLO, write_task  # here: a worker loads this file by its path, outside the package

    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(30, 40))
    (tmp_path / "rows.jsonl").write_text(rows)
    write_task(tmp_path / "task", HELLO)
    found = await checks_of(resolve(name), options=OPTIONS.get(name), tasks=2)
    assert not [check for check in found if check.problems]
    assert {check.name for check in found if check.skipped} <= {"solution", "floor", "fork"}


async def test_a_server_is_checked_by_what_can_be_seen_from_outside(serve):
    found = await checks_of(serve("Guess").url, tasks=1)
    assert not [check for check in found if check.problems]
    made = {check.name for check in found if check.passed}
    assert made == {"tasks", "episodes", "messages", "determinism", "isolation", "end"}
    (check, *_) = await checks_of(serve("Slow", limits=EnvironmentLimits(tasks_s=0.5)).url, tasks=1)
    assert any("split 'broken' cannot be read" in problem for problem in check.problems)


BROKEN = """
from quintain.envs import SingleTurnEnv, Task, user

class Mine(SingleTurnEnv):
    @classmethod
    def tasks(cls, split):
        return [Task("one", (user("?"),), "yes")]

    def score(self, answer, reference):
        return BOOKS[answer]
"""


def test_the_command_says_what_is_wrong_with_the_users_own_file_and_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BROKEN)
    told = CliRunner().invoke(cli, ["env", "check", f"{file}:Mine", "--json", "--tasks", "1"], standalone_mode=False)
    report = json.loads(told.stdout)
    assert (told.return_value, report["passed"]) == (1, False)
    (episodes,) = [check for check in report["checks"] if check["name"] == "episodes"]
    assert "crashed in step: NameError: name 'BOOKS' is not defined (mine.py:10)" in episodes["problems"][0]
    (tmp_path / "other.py").write_text("\nimport this_is_not_there\n")
    with pytest.raises(QuintainError, match=r"importing .*other\.py:2 failed: ModuleNotFoundError"):
        load_module(str(tmp_path / "other.py"))


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
