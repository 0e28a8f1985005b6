"""The vocabulary refuses what breaks its contract, where it is made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.codec import from_json, to_json
from quintain.envs import Action, FailureError, Message, Observation, Step, assistant, user
from quintain.failure import FailureKind, Stage


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, None, "1.0", [1.0], np.float32("nan")])
def test_a_reward_that_is_no_finite_number_is_refused_where_it_arises(reward):
    with pytest.raises(FailureError, match="must be a finite number") as error:
        Step(Observation(), reward, True)
    assert (error.value.failure.kind, error.value.failure.stage) == (FailureKind.INVALID, Stage.STEP)


@pytest.mark.parametrize("reward", [1, True, np.float32(0.5), np.int64(2), 0.25])
def test_a_reward_becomes_a_plain_float(reward):
    step = Step(Observation(), reward, True)
    assert type(step.reward) is float
    assert step.reward == float(reward)


def test_a_part_of_the_reward_that_is_not_finite_is_refused_by_name():
    with pytest.raises(FailureError, match="the reward 'style' must be a finite number, not nan"):
        Step(Observation(), 0.0, True, info={"rewards": {"correct": 1, "style": math.nan}})


def test_an_action_is_an_assistant_message():
    assert Action.text("hello").message == assistant("hello")
    with pytest.raises(ValueError, match="not one by 'user'"):
        Action(user("hello"))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (["hello"], "must each be a Message, not 'hello'"),
        (user("hello"), "must be a sequence of Message, not a single one"),
        ([Message("robot", "hello")], "the role must be one of system, user, assistant, tool, not 'robot'"),
        ([Message("user", 5)], "the content of a user message must be text, not 5"),
        ([Message("user")], "the content of a user message must be text, not None"),
    ],
)
def test_a_malformed_observation_is_refused(messages, complaint):
    with pytest.raises(FailureError, match=complaint):
        Observation(messages)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.text(), finite, st.booleans(), st.booleans(), st.dictionaries(st.text(), finite, max_size=3))
def test_a_step_survives_the_journey_through_json(text, reward, terminated, truncated, parts):
    step = Step(Observation((user(text),)), reward, terminated, truncated, {"rewards": parts})
    assert from_json(to_json(step), Step) == step
