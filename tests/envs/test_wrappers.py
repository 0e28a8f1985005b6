"""Wrappers change what they are for, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs import (
    Action,
    CalculatorEnv,
    LocalClient,
    MathEnv,
    ObservationLimit,
    ShapedReward,
    TurnLimit,
    TwentyQuestionsEnv,
    check_environment,
)
from quintain.envs.options import bind
from quintain.envs.wrappers import without_middle


class Short(TurnLimit, ObservationLimit, TwentyQuestionsEnv):
    """Three questions, in few words."""

    turn_limit = 3
    observation_chars = 40


class Brief(ShapedReward, MathEnv):
    """Pays for brevity as well."""

    def shaped(self, action, step):
        return step.reward + 0.5 * (len(action.content) < 5)


async def test_an_episode_is_truncated_at_the_turn_limit_and_keeps_what_it_was_paid():
    async with LocalClient(Short) as client:
        for words, ended in (("What?", [False, False, True]), (None, [True])):
            task = client.tasks("train")[0]
            env = client.episode()
            await env.reset(task, seed=0)
            said = words or f"Is it the {' '.join(task.reference['thing'])}?"
            steps = [await env.step(Action.text(said)) for _ in ended]
            assert [step.ended for step in steps] == ended
            assert steps[-1].truncated == (len(ended) == 3)
            assert steps[-1].reward == float(len(ended) == 1)


async def test_long_messages_lose_their_middle_and_short_ones_nothing():
    async with LocalClient(Short) as client:
        env = client.episode()
        task = client.tasks("train")[0]
        first = await env.reset(task, seed=0)
        assert first.messages[0].text.startswith("I am thinking of a t")
        assert "characters left out" in first.messages[0].text
        step = await env.step(Action.text(f"Is it a {task.reference['thing'][-1]}?"))
        assert step.observation.messages[0].text == "Yes."


@given(st.text(max_size=60), st.integers(1, 50))
def test_what_is_left_of_a_text_are_its_ends(text, limit):
    short = without_middle(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        head, tail = short.split(f"\n({len(text) - limit} characters left out)\n")
        assert len(head) + len(tail) == limit
        assert text.startswith(head)
        assert text.endswith(tail)


async def test_rewards_are_what_the_shaping_says():
    async with LocalClient(Brief) as client:
        task = client.tasks("train")[0]
        for said, reward in ((task.reference, 1.5), (f"It is {task.reference}.", 1.0), ("?", 0.5)):
            env = client.episode()
            await env.reset(task, seed=0)
            assert (await env.step(Action.text(said))).reward == reward


def test_options_tasks_and_splits_are_those_of_the_environment():
    assert (
        bind(Short, {"values": 2, "max_turns": 5}).tasks("heldout")[3]
        == bind(TwentyQuestionsEnv, {"values": 2}).tasks("heldout")[3]
    )


@pytest.mark.parametrize("cls", [Short, Brief, type("Calm", (TurnLimit, CalculatorEnv), {"turn_limit": 1})])
async def test_what_is_wrapped_is_sound(cls):
    assert await check_environment(cls) == []
