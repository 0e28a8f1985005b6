"""Our environments pass for Gymnasium's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from quintain.envs import Action, LocalClient, MathEnv
from quintain.envs.gym import AnyText, GymEnv
from quintain.envs.single_turn import SingleTurnEnv
from quintain.failure import QuintainError

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_env.py"


@pytest.fixture
def env():
    env = gymnasium.make("quintain.envs.gym:quintain/Math-v0")
    yield env
    env.close()


@pytest.mark.filterwarnings("error", "default::pytest.PytestUnraisableExceptionWarning")  # which is of another test
def test_it_passes_gymnasiums_own_check(env):
    check_env(env.unwrapped)


def test_an_episode_is_a_question_and_a_reward(env):
    text, info = env.reset(seed=3)
    assert info["messages"] == [{"role": "user", "content": text}]
    a, b = text.removeprefix("What is ").removesuffix("?").split(" + ")
    assert env.step(str(int(a) + int(b)))[:4] == ("", 1.0, True, False)
    again, _ = env.reset(seed=3)
    assert again == text
    assert env.step("0")[1] == 0.0


def test_any_environment_and_split_can_be_had():
    env = GymEnv(f"{EXAMPLE}:Capitals")
    text, info = env.reset(options={"index": 1})
    assert text.endswith("What is the capital of Peru?")
    assert info["task"] == "Peru"
    assert "Lima" not in str(info)
    assert env.step("Lima")[1] == pytest.approx(1.2)
    env.close()


async def test_it_works_where_an_event_loop_runs_already(env):
    text, _ = env.reset(seed=1)
    assert text.startswith("What is")


def test_closing_leaves_no_thread_and_may_be_done_twice():
    env = GymEnv()
    env.reset(seed=0)
    assert any(thread.name == "quintain-gym" for thread in threading.enumerate())
    env.close()
    env.close()
    assert not any(thread.name == "quintain-gym" for thread in threading.enumerate())


def test_texts_of_any_script_belong_to_the_space_unless_they_are_too_long():
    space = AnyText(5, 10)
    assert "Ωμέγα" in space
    assert "" in space
    assert "x" * 11 not in space
    assert 5 not in space
    assert all(space.sample() in space for _ in range(50))
    assert space == AnyText(5, 10)
    assert space != AnyText(5, 11)


@pytest.mark.parametrize("make", [list, tuple])
def test_a_split_without_tasks_is_refused_in_one_line(make):
    class Nothing(SingleTurnEnv):
        @classmethod
        def tasks(cls, split):
            return make()

    with pytest.raises(QuintainError, match="the split 'train' has no tasks: choose another"):
        GymEnv(Nothing)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_beyond_the_split_is_refused_in_one_line(index):
    env = GymEnv(f"{EXAMPLE}:Capitals")
    with pytest.raises(QuintainError, match=rf"options\['index'\] is from 0 to 4, not {index}"):
        env.reset(options={"index": index})
    env.close()


async def test_a_client_that_is_lent_plays_in_its_own_loop_and_stays_open():
    loop = asyncio.get_running_loop()

    def play(client):
        env = GymEnv(client, within=loop)
        env.reset(seed=0)
        assert env.step("?")[2]
        env.close()

    async with LocalClient(MathEnv) as client:
        still = client.episode()
        task = client.tasks("train")[0]
        await still.reset(task, seed=0)
        await asyncio.to_thread(play, client)
        assert (await still.step(Action.text(task.reference))).reward == 1.0
