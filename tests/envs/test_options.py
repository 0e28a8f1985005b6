"""Options go where their names are, and what is wrong with them is one line."""

from __future__ import annotations

import pytest

from quintain.envs import Environment, MathEnv, Observation, Step
from quintain.envs.options import bind
from quintain.failure import QuintainError


class Both(Environment):
    """Takes options in both places."""

    def __init__(self, *, turns: int = 3, name: str) -> None:
        self.turns = turns
        self.name = name

    async def reset(self, task, *, seed):
        return Observation()

    async def step(self, action):
        return Step(Observation(), 0.0, True)

    @classmethod
    def tasks(cls, split, *, high: int = 9, name: str = "x"):
        return [f"{split}-{high}-{name}"]


def test_each_option_reaches_the_parameter_of_its_name():
    bound = bind(Both, {"turns": 5, "high": 20, "name": "n"})
    assert (bound().turns, bound().name) == (5, "n")
    assert bound.tasks("train") == ["train-20-n"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "n", "turn": 3}, "Both has no option 'turn': did you mean 'turns'? (its options: high, name, turns)"),
        ({"name": "n", "turns": "many"}, "Both's option 'turns': Input should be a valid integer"),
        ({"turns": 3}, "Both needs the option 'name'"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_to_do(options, complaint):
    with pytest.raises(QuintainError) as error:
        bind(Both, options)
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value)


def test_text_from_a_command_line_becomes_the_number_that_is_wanted():
    assert bind(Both, {"turns": "5", "name": "n"})().turns == 5


def test_an_unknown_split_names_the_nearest_one():
    with pytest.raises(QuintainError, match=r"MathEnv has no split 'held_out': did you mean 'heldout'\?"):
        bind(MathEnv).tasks("held_out")
