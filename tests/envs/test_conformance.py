"""One set of rules for an environment, whichever way it is reached: the class itself, in process, over HTTP.

The remote face is a real server process behind a real socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintain.envs import (
    Action,
    EndlessTasks,
    EnvClient,
    Environment,
    FailureError,
    LocalClient,
    RemoteEnv,
    Task,
    check_environment,
    resolve,
    user,
)
from quintain.failure import FailureKind, QuintainError, Stage
from quintain.task import TaskOrigin

SAMPLES = Path(__file__).parent / "samples.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_env.py"
SPECS = {"math": "math", "capitals": f"{EXAMPLE}:Capitals", "guess": f"{SAMPLES}:Guess"}
ENDLESS = {"math", "guess"}


@dataclass
class Face:
    """One environment, reached in one way: `make()` gives an episode, `tasks(split)` its tasks."""

    name: str
    way: str
    make: Callable[[], Environment]
    tasks: Callable[[str], Any]
    client: Any


@pytest.fixture(scope="module")
def servers(serve_all):
    return {name: serve_all(spec) for name, spec in SPECS.items()}


WAYS = [
    (name, way) for name in SPECS for way in ("class", "local", "client", "remote") if (name, way) != ("guess", "class")
]


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
async def face(request, servers) -> AsyncIterator[Face]:
    name, way = request.param
    cls = resolve(SPECS[name])
    if way == "class":  # a single-turn environment keeps the rules by itself
        yield Face(name, way, cls, cls.tasks, cls)
        return
    if way == "remote":  # an object with connections of its own stands for the class
        env = RemoteEnv(servers[name].url)
        yield Face(name, way, lambda: env, env.tasks, EnvClient(servers[name].url))
        await env.close()
        return
    async with LocalClient(cls) if way == "local" else servers[name].client() as client:
        yield Face(name, way, client, client.tasks, client)


async def play(face: Face, task: Task, seed: int, *answers: str) -> list[Any]:
    env = face.make()
    said: list[Any] = [await env.reset(task, seed=seed)]
    for answer in answers:
        said.append(await env.step(Action.text(answer)))
        if said[-1].ended:
            break
    await env.close()
    return said


async def test_the_checker_finds_nothing(face):
    assert await check_environment(face.client) == []


async def test_the_same_task_seed_and_actions_give_the_same_episode(face):
    task = face.tasks("train")[1]
    assert await play(face, task, 7, "5", "6", "7") == await play(face, task, 7, "5", "6", "7")


async def test_the_first_observation_ends_with_the_users_question(face):
    (observation,) = await play(face, face.tasks("train")[0], 0)
    assert observation.messages[-1].role == "user"
    assert observation.messages[-1].content


async def test_an_episode_comes_to_an_end(face):
    said = await play(face, face.tasks("train")[0], 0, *["nonsense"] * 5)
    assert said[-1].ended
    assert not any(step.ended for step in said[1:-1])


async def test_a_step_after_the_end_is_refused(face):
    env = face.make()
    await env.reset(face.tasks("train")[0], seed=0)
    while not (await env.step(Action.text("0"))).ended:
        pass
    with pytest.raises(FailureError) as error:
        await env.step(Action.text("0"))
    assert (error.value.failure.kind, error.value.failure.stage) == (FailureKind.REJECTED, Stage.STEP)
    assert not error.value.failure.retryable
    await env.close()


async def test_a_step_before_the_first_reset_is_refused(face):
    env = face.make()
    with pytest.raises(FailureError) as error:
        await env.step(Action.text("0"))
    assert (error.value.failure.kind, error.value.failure.stage) == (FailureKind.REJECTED, Stage.STEP)


async def test_an_environment_can_be_reset_in_the_middle_and_after_the_end(face):
    env, tasks = face.make(), face.tasks("train")
    for index in (0, 1):
        await env.reset(tasks[index], seed=0)
        while not (await env.step(Action.text("0"))).ended:
            pass
        again = await env.reset(tasks[index], seed=0)
        assert again == await env.reset(tasks[index], seed=0)
    await env.close()


async def test_closing_is_allowed_at_any_time_and_twice(face):
    env = face.make()
    await env.close()
    await env.reset(face.tasks("train")[0], seed=0)
    await env.close()
    await env.close()


async def test_a_task_of_ones_own_is_played_with_its_own_reference(face):
    task = Task("mine", (user("What is 2 + 3?"),), 5 if face.name == "guess" else "5")
    assert (await play(face, task, 0, "5"))[1].reward >= 1.0
    assert (await play(face, task, 0, "6"))[1].reward < 1.0


async def test_an_episode_says_the_environments_own_id_of_its_task_though_it_was_asked_for_by_its_place(face):
    if face.way != "class":  # which is given its task whole
        env, task = face.make(), face.tasks("train")[1]
        place = TaskOrigin("train", 1) if face.way == "remote" else None
        await env.reset(replace(task, id="the client's name", origin=place) if place else task, seed=0)
        assert env.task_id == task.id
        await env.close()


async def test_a_reference_of_numpy_plays_the_same_and_one_that_cannot_be_sent_is_a_failure_that_names_it(face):
    right = 5 if face.name == "guess" else "5"
    task = Task("mine", (user("What is 2 + 3?"),), np.array([right])[0], info={"x": np.float32(0.5)})
    assert (await play(face, task, 0, "5"))[1].reward >= 1.0
    if face.way == "remote":
        with pytest.raises(FailureError, match=r"CreateEpisode.task.reference, which is of type object") as caught:
            await face.make().reset(Task("mine", (user("?"),), object()), seed=0)
        assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.REJECTED, Stage.RESET)


async def test_every_reward_is_the_float_it_should_be(face):
    step = (await play(face, Task("mine", (user("?"),), 5 if face.name == "guess" else "5"), 0, "5"))[1]
    assert type(step.reward) is float
    if "rewards" in step.info:
        assert sum(step.info["rewards"].values()) == pytest.approx(step.reward)


async def test_episodes_do_not_disturb_one_another(face):
    if face.way == "remote":  # stands for one episode at a time
        face = replace(face, make=face.client)
    one, other = face.make(), face.make()
    mine = replace(Task("mine", (user("?"),)), reference=5 if face.name == "guess" else "5")
    await one.reset(mine, seed=0)
    await other.reset(replace(mine, reference=6 if face.name == "guess" else "6"), seed=1)
    assert (await one.step(Action.text("5"))).reward > (await other.step(Action.text("5"))).reward
    await one.close()
    await other.close()


async def test_a_split_gives_the_same_task_at_the_same_index(face):
    source = face.tasks("train")
    assert isinstance(source, EndlessTasks) == (face.name in ENDLESS)
    last = 1000 if face.name in ENDLESS else len(source) - 1
    assert source[last] == face.tasks("train")[last]
    assert source[0] != source[last]


async def test_a_finite_split_is_a_sequence(face):
    source = face.tasks("train" if face.name == "capitals" else "heldout")
    listed = list(source)
    assert len(source) == len(listed) > 3
    assert source[-1] == listed[-1]
    assert list(source[1:3]) == listed[1:3]
    with pytest.raises(IndexError):
        source[len(source)]


def test_an_unknown_split_is_refused_here_and_there(servers):
    for error, client in ((QuintainError, LocalClient(resolve("math"))), (FailureError, servers["math"].client())):
        with pytest.raises(error, match="has no split 'tain': did you mean 'train'"):
            client.tasks("tain")


async def test_remote_tasks_are_the_class_tasks_without_their_references(servers):
    for name, spec in SPECS.items():
        cls = resolve(spec)
        for split in cls.splits:
            own, remote = cls.tasks(split), servers[name].client().tasks(split)
            for index in (0, 1, 4):
                assert own[index].reference is not None
                assert remote[index] == replace(own[index], reference=None, origin=remote[index].origin)
                assert (remote[index].origin.split, remote[index].origin.index) == (split, index)


async def test_metadata_says_which_environment_it_is(servers):
    metadata = await servers["math"].client().metadata()
    assert metadata.name == "math"
    assert metadata.splits == {"train": None, "heldout": 200}
    assert metadata.description.startswith("Arithmetic")
