"""A first step that is all of something, and figures that come apart, stop the run with one line, or are told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from quintain.arrays import as_floats, as_ints
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.launch.guards import PATIENCE, Guarded, StepGuard, first_step_problem, step_problems
from quintain.messages import FunctionCall, Message, ToolCall, assistant
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
CALLED = Message("assistant", None, (ToolCall("c", FunctionCall("add", "{}")),))


FOUR = assistant("4")


def turn(message: Message = FOUR, *, tokens: int = 2, finish: Finish = Finish.STOP) -> Turn:
    ids, spans = as_ints(range(tokens)), (VersionSpan(0, 0, tokens),) if tokens else ()
    return Turn(as_ints([1]), ids, as_floats([-1.0] * tokens), finish, spans, message)


def episode(*turns: Turn, reward: float | None = 1.0, ending: Ending = Ending.TERMINATED, **more: Any) -> Trajectory:
    failure = None if reward is not None else Failure.of(FailureKind.TIMEOUT, Stage.STEP, "late")
    ending = ending if reward is not None else Ending.FAILED
    return Trajectory("e", "g", "train/7", 7, 0, 0, turns or (turn(),), ending, reward, failure, **more)


def groups(*episodes: Trajectory) -> list[Group]:
    return [Group("g", 7, episodes)]


@pytest.mark.parametrize(
    ("episodes", "says"),
    [
        ([episode(turn(tokens=0), reward=r) for r in (0.0, 1.0)], "no token of the first step was sampled"),
        (
            [episode(turn(assistant(CALL)), reward=r, info={"tools": ["add"]}) for r in (0.0, 1.0)],
            "no tool call was read.*tools were on offer and 2 of 2 turns",
        ),
        ([episode(turn(finish=Finish.LENGTH), reward=r) for r in (0.0, 1.0)], "cut off.*train/7: “4”.*rollout.stop"),
        ([episode(reward=r, ending=Ending.TRUNCATED) for r in (0.0, 1.0)], "was truncated.*rollout.max_turns"),
        ([episode(reward=r) for r in (0.5, 0.5, None)], "every reward of the first step is 0.5.*“4”"),
    ],
)  # fmt: skip
def test_a_first_step_of_which_all_is_alike_is_one_line_with_an_example(episodes: list[Trajectory], says: str) -> None:
    problem = first_step_problem(groups(*episodes))
    assert problem is not None
    assert "\n" not in problem
    with pytest.raises(QuintainError, match=f"{says}.*set guards.first_step: warn"):
        Guarded(Batches(groups(*episodes)), stop=True, say=pytest.fail).batch(0)


@pytest.mark.parametrize(
    "episodes",
    [
        [episode(reward=0.0), episode(reward=1.0)],
        [episode(turn(assistant(CALL)), turn(CALLED), reward=0.0, info={"tools": ["add"]}), episode(reward=1.0)],
        [episode(turn(assistant(CALL)), reward=r) for r in (0.0, 1.0)],  # nothing was on offer: it is only a text
        [episode(turn(finish=Finish.LENGTH), reward=0.0), episode(reward=1.0)],
        [episode(reward=0.0, ending=Ending.TRUNCATED), episode(reward=1.0)],
        [episode(reward=1.0)],
    ],
)
def test_a_first_step_with_a_difference_in_it_goes_on(episodes: list[Trajectory]) -> None:
    assert first_step_problem(groups(*episodes)) is None


def test_only_the_first_step_is_looked_at_and_a_warning_lets_it_go_on() -> None:
    said: list[str] = []
    alike = groups(episode(reward=0.0), episode(reward=0.0))
    assert Guarded(Batches(alike), stop=True, say=said.append).batch(1) == alike
    assert Guarded(Batches(alike), stop=False, say=said.append).batch(0) == alike
    assert Guarded(Batches(alike), stop=True, say=pytest.fail, rewards=False).batch(0) == alike
    assert len(said) == 1
    assert said[0].startswith("warning: every reward of the first step is 0 ")


class Batches:
    def __init__(self, made: Sequence[Group]) -> None:
        self.made = made

    def batch(self, step: int) -> Sequence[Group]:
        return self.made


WELL = {
    "kl": 0.1, "policy/approxkl_avg": 0.01, "critic/value_largest": 1.5, "critic/reward_largest": 1.0,
    "critic/explained_variance": 0.4, "entropy": 0.5, "reward_std": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "value", "says"),
    [
        ("kl", 6.0, "raise the weight of the KL, or lower trainer.learning_rate"),
        ("policy/approxkl_avg", 0.6, "lower trainer.learning_rate or trainer.num_iterations"),
        (
            "critic/value_largest",
            30.0,
            "expected up to 30 where episodes give 1 at most: lower trainer.critic_l",
        ),
        ("critic/explained_variance", -0.1, "worse than a constant .* critic_warmup_steps"),
        ("entropy", 0.001, "nothing new is tried; raise rollout.temperature"),
    ],
)
def test_a_trouble_that_stays_is_told_once_with_what_helps_or_stops_the_run(
    figure: str, value: float, says: str
) -> None:
    assert not step_problems(WELL)
    assert not step_problems({})
    assert step_problems(WELL | {figure: value}).keys() == {figure}
    said: list[str] = []
    steps = StepGuard(stop=False, say=said.append)
    for _ in range(PATIENCE - 1):
        steps.see(WELL | {figure: value})
    steps.see(WELL)  # a step without it begins the count again
    for _ in range(PATIENCE - 1):
        steps.see(WELL | {figure: value})
    assert not said
    for _ in range(2 * PATIENCE):
        steps.see(WELL | {figure: value})
    (line,) = said
    assert re.search(says, line), line
    stopping = StepGuard(stop=True, say=said.append)
    for _ in range(PATIENCE - 1):
        stopping.see(WELL | {figure: value})
    with pytest.raises(QuintainError, match=r"guards\.every_step: warn"):
        stopping.see(WELL | {figure: value})


def test_a_policy_that_is_certain_and_always_right_is_no_trouble() -> None:
    assert not step_problems(WELL | {"entropy": 0.0, "reward_std": 0.0})
