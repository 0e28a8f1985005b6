"""Gymnasium's own environments in words, against what Gymnasium does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, Text

from quintain.envs import Action, GymnasiumEnv, LocalClient, check_environment
from quintain.envs.options import bind
from quintain.failure import QuintainError

LAKE = {"game": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}
WAY = ["down", "down", "right", "right", "down", "right"]


class Echo(gymnasium.Env):
    """Says back what it hears, and pays for its length; ends at "stop"."""

    observation_space = Text(100)
    action_space = Text(10, charset="abcdefghijklmnopqrstuvwxyz ")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "say something", {}

    def step(self, action):
        return action, len(action) / 10, action == "stop", False, {}


class Aim(gymnasium.Env):
    """A number in, its distance out."""

    observation_space = Box(-1, 1, (2,))
    action_space = Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.array([action[0], 0.5], np.float32), -abs(float(action[0]) - 0.5), False, False, {}


class Picture(Aim):
    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = Discrete(3, start=1)


for cls in (Echo, Aim, Picture):
    gymnasium.register(f"tests/{cls.__name__}-v0", entry_point=cls)


async def played(options, *said, index=0):
    async with LocalClient(GymnasiumEnv, options) as client:
        env = client.episode()
        first = await env.reset(client.tasks("train")[index], seed=0)
        return [first, *[await env.step(Action.text(text)) for text in said]]


def told(step) -> str:
    return getattr(step, "observation", step).messages[-1].text


async def test_a_lake_is_crossed_in_words():
    first, *steps = await played(LAKE, *(f"I go {word}." for word in WAY))
    assert first.messages[0].text == (
        "You play FrozenLake-v1. An action is one of: left, down, right, up. End your answer with it."
    )
    assert told(first) == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert told(steps[0]).endswith("SFFF\n[F]HFH\nFFFH\nHFFG")
    assert [step.reward for step in steps] == [0, 0, 0, 0, 0, 1]
    assert [step.ended for step in steps] == [False] * 5 + [True]


async def test_what_names_no_action_uses_up_a_turn_and_of_several_the_last_counts():
    _, *steps = await played({**LAKE, "max_turns": 3}, "hm", "not left, DOWN", "5")
    assert told(steps[0]) == "That is no action. An action is one of: left, down, right, up. End your answer with it."
    assert steps[0].info == {"no_action": 1}
    assert "[F]HFH" in told(steps[1])
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False), (False, False), (False, True)]


async def test_episodes_are_gymnasiums_of_the_same_seed():
    options = {"game": "Blackjack-v1"}
    for index in range(5):
        task = bind(GymnasiumEnv, options).tasks("train")[index]
        first, step = await played(options, "I take a card: 1", index=index)
        env = gymnasium.make("Blackjack-v1")
        assert told(first) == str(list(map(int, env.reset(seed=task.seed)[0]))).replace(" ", "")
        observed, reward, terminated, _, _ = env.step(1)
        assert told(step) == str(list(map(int, observed))).replace(" ", "")
        assert (step.reward, step.terminated) == (reward, terminated)


async def test_text_and_numbers_go_both_ways():
    first, *steps = await played({"game": "tests/Echo-v0"}, " hello ", "HELLO", "stop")
    assert [told(first), told(steps[0])] == ["say something", "hello"]
    assert [step.reward for step in steps] == [0.5, 0.0, 0.4]
    assert [step.terminated for step in steps] == [False, False, True]
    first, *steps = await played({"game": "tests/Aim-v0"}, "[0.25]", "0.25", "[2]", "[1, 2]", "left")
    assert told(first) == "[0.0,0.0]"
    assert [(step.reward, step.info.get("no_action", 0)) for step in steps] == [(-0.25, 0), (-0.25, 0)] + [(0.0, 1)] * 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"game": "FrozenLke-v1"}, "the game 'FrozenLke-v1' of gymnasium cannot be made: Environment `FrozenLke`"),
        ({"game": "FrozenLake-v1", "kwargs": {"map_name": "9x9"}}, "'FrozenLake-v1' of gymnasium cannot be made"),
        ({"game": "FrozenLake-v1", "actions": ["left"]}, "the game 'FrozenLake-v1' has 4 actions, not 1"),
        ({"game": "tests/Picture-v0"}, "the game 'tests/Picture-v0' shows 12288 numbers: at most 64"),
        ({"game": "FrozenLake-v1", "max_turns": 0}, "max_turns is at least 1, not 0"),
    ],
)  # fmt: skip
def test_a_game_that_cannot_be_put_into_words_is_one_line(options, complaint):
    with pytest.raises(QuintainError) as error:
        bind(GymnasiumEnv, options)()
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [LAKE, {"game": "Taxi-v4"}, {"game": "CartPole-v1"}], ids=lambda o: o["game"])
async def test_games_are_sound_environments_and_never_train_on_what_is_held_out(options):
    assert await check_environment(GymnasiumEnv, options=options) == []
    train, heldout = (bind(GymnasiumEnv, options).tasks(split) for split in ("train", "heldout"))
    assert not {task.seed for task in heldout} & {train[n].seed for n in range(300)}
