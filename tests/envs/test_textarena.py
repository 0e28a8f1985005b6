"""Games of TextArena, against what TextArena does, and against opponents that are asked over a socket."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from quintain.envs import Action, LocalClient, TextArenaEnv, check_environment
from quintain.envs.options import bind
from quintain.failure import FailureError, FailureKind, QuintainError

from ..launch.fake_openai import fake_openai

GUESS = {"game": "GuessTheNumber-v0"}


def first_free(request: dict[str, Any]) -> dict[str, Any]:
    """An opponent at noughts and crosses that takes the first free cell."""
    moves = re.findall(r"Available Moves: '(\[\d\])'", request["messages"][-1]["content"])
    return {"content": f"<think>hm</think>I take {moves[-1]}"}


def text(step: Any) -> str:
    return getattr(step, "observation", step).messages[0].text


async def test_a_number_is_guessed_by_halving_and_only_what_is_new_is_shown():
    async with LocalClient(TextArenaEnv, GUESS) as client:
        for index in range(3):
            env = client.episode()
            shown = await env.reset(client.tasks("train")[index], seed=0)
            low, high = map(int, re.findall(r"between (\d+) and (\d+)", text(shown))[0])
            steps: list[Any] = []
            while not (steps and steps[-1].ended):
                middle = (low + high) // 2
                steps.append(await env.step(Action.text(f"I guess [{middle}]")))
                if not steps[-1].ended:
                    assert "between" not in text(steps[-1])
                    low, high = (middle + 1, high) if "higher" in text(steps[-1]) else (low, middle - 1)
            assert (steps[-1].reward, steps[-1].terminated) == (1.0, True)


async def test_an_episode_depends_on_its_seed_and_words_whatever_else_draws_random_numbers():
    async with LocalClient(TextArenaEnv, {"game": "Blackjack-v0"}) as client:
        played = []
        for disturbed in (False, True):
            env, other = client.episode(), client.episode()
            said = [text(await env.reset(client.tasks("train")[0], seed=0))]
            for _ in range(4):
                if disturbed:
                    random.seed(7)
                    await other.reset(client.tasks("train")[1], seed=0)
                before = random.getstate()
                step = await env.step(Action.text("[Stand]"))
                assert random.getstate() == before
                said.append("" if step.ended else text(step))
                if step.ended:
                    break
            played.append(said)
        assert played[0] == played[1]


async def test_a_game_of_two_is_played_against_a_model_for_the_reward_of_ones_own_seat():
    with fake_openai(first_free) as fake:
        for seat, words, reward in ((0, ["[2]", "[4]", "[6]"], 1.0), (1, ["[8]", "[7]"], -1.0), (0, ["x"] * 3, -1.0)):
            options = {
                "game": "TicTacToe-v0",
                "players": 2,
                "seat": seat,
                "opponent": {"url": fake.url, "model": "m", "retries": 0},
            }
            async with LocalClient(TextArenaEnv, options) as client:
                env = client.episode()
                first = await env.reset(client.tasks("train")[0], seed=0)
                assert f"You are Player {seat}" in text(first)
                steps: list[Any] = []
                for word in words:
                    steps.append(await env.step(Action.text(word)))
                    if steps[-1].ended:
                        break
                assert (steps[-1].reward, steps[-1].terminated) == (reward, True)


async def test_without_an_opponent_the_policy_has_every_seat_and_each_is_paid_for_itself():
    async with LocalClient(TextArenaEnv, {"game": "TicTacToe-v0", "players": 2}) as client:
        env = client.episode()
        shown = await env.reset(client.tasks("train")[0], seed=0)
        assert shown.agent == "player_0"
        assert "You are Player 0" in text(shown)
        for place, word in enumerate(["[0]", "[3]", "[1]", "[4]"]):
            step = await env.step(Action.text(word))
            assert (step.observation.agent, step.reward, step.others) == (f"player_{(place + 1) % 2}", 0.0, {})
            assert ("You are Player 1" in text(step)) == (place == 0)  # a seat is told once who it is
        step = await env.step(Action.text("[2]"))
        assert (step.terminated, step.reward, step.others) == (True, 1.0, {"player_1": -1.0})


@pytest.mark.parametrize(
    ("says", "kind"), [((500, {}), FailureKind.CRASHED), ({"content": ""}, FailureKind.INVALID)], ids=str
)
async def test_an_opponent_that_does_not_answer_is_a_failure_and_no_reward(says, kind):
    with fake_openai(lambda request: says) as fake:
        opponent = {"url": fake.url, "model": "m", "retries": 0}
        async with LocalClient(TextArenaEnv, {"game": "TicTacToe-v0", "players": 2, "opponent": opponent}) as client:
            env = client.episode()
            await env.reset(client.tasks("train")[0], seed=0)
            with pytest.raises(FailureError, match="the opponent") as error:
                await env.step(Action.text("[4]"))
            assert error.value.failure.kind is kind


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"game": "TicTacTo-v0"}, "Environment TicTacTo-v0 not found"),
        ({"game": "TicTacToe-v0"}, "The number of players has to be 2"),
        ({"game": "TicTacToe-v0", "players": 2, "seat": 1}, "TextArenaEnv's seat is against an opponent"),
        ({**GUESS, "seat": 1}, "TextArenaEnv's seat is 0 to 0, not 1"),
        ({**GUESS, "max_turns": 0}, "TextArenaEnv's max_turns is at least 1, not 0"),
    ],
)  # fmt: skip
def test_a_game_that_cannot_be_played_is_one_line(options, complaint):
    def make() -> None:
        bound = bind(TextArenaEnv, options)
        bound()
        bound.tasks("train")

    with pytest.raises(QuintainError, match=re.escape(complaint)) as error:
        make()
    assert "\n" not in str(error.value)


async def test_a_game_is_a_sound_environment():
    assert await check_environment(TextArenaEnv, options=GUESS | {"max_turns": 4}) == []
    assert await check_environment(TextArenaEnv, options={"game": "TicTacToe-v0", "players": 2}) == []
