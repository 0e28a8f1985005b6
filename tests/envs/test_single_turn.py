"""A question, an answer, a score: in ten lines, and with every kind of score."""

from __future__ import annotations

from pathlib import Path

import pytest

from quintain.envs import Action, FailureError, LocalClient, SingleTurnEnv, Task, Verdict, resolve, user
from quintain.failure import FailureKind
from quintain.verifiers.base import Verifier

SAMPLES = Path(__file__).parent / "samples.py"
REFERENCE = "secret"


def env_with(**attributes) -> type[SingleTurnEnv]:
    tasks = classmethod(lambda cls, split: [Task("one", (user("?"),), REFERENCE)])
    return type("Made", (SingleTurnEnv,), {"tasks": tasks, **attributes})


async def answer(cls: type[SingleTurnEnv], text: str):
    async with LocalClient(cls) as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)
        return await env.step(Action.text(text))


async def as_coroutine(self, answer, reference):
    return float(answer == reference)


class Exact(Verifier):
    """A user's own verifier."""

    name = "exact"
    version = "1"
    closed = False

    async def verify(self, items, *, deadline_s=None):
        return [Verdict.scored(float(item.answer == item.reference), secret=item.reference) for item in items]

    async def close(self):
        type(self).closed = True


@pytest.mark.parametrize(
    "attributes",
    [
        {"score": lambda self, answer, reference: float(answer == reference)},
        {"score": as_coroutine},
        {"score": lambda self, answer, reference: Verdict.scored(float(answer == reference), secret=reference)},
        {"score": lambda self, answer, reference: {"right": answer == reference, "always": 0}},
        {"verifier": Exact()},
    ],
    ids=["float", "coroutine", "verdict", "parts", "verifier"],
)
async def test_every_kind_of_score_becomes_a_reward_and_never_shows_the_reference(attributes):
    cls = env_with(**attributes)
    right, wrong = await answer(cls, REFERENCE), await answer(cls, "else")
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.terminated
    assert wrong.terminated
    assert REFERENCE not in str(right)


async def test_the_parts_of_a_reward_are_named_and_sum_to_it():
    step = await answer(env_with(score=lambda self, a, r: {"right": 1, "brief": -0.25}), "x")
    assert step.reward == 0.75
    assert step.info["rewards"] == {"right": 1.0, "brief": -0.25}


async def test_a_verifier_of_ones_own_is_left_open_for_its_owner():
    Exact.closed = False
    await answer(env_with(verifier=Exact()), "x")
    assert not Exact.closed


@pytest.mark.parametrize(
    ("attributes", "kind", "message"),
    [
        ({"score": lambda self, a, r: float("nan")}, FailureKind.INVALID, "the reward must be a finite number"),
        ({"score": lambda self, a, r: {"style": float("inf")}}, FailureKind.INVALID, "the reward 'style' must be"),
        ({"score": lambda self, a, r: None}, FailureKind.INVALID, "the reward must be a finite number, not None"),
        ({}, FailureKind.CRASHED, "Made needs a `score` method or a `verifier`"),
        ({"verifier": "mth"}, FailureKind.CRASHED, "did you mean 'math'"),
    ],
)
async def test_what_is_no_score_is_a_failure(attributes, kind, message):
    with pytest.raises(FailureError, match=message) as error:
        await answer(env_with(**attributes), "x")
    assert error.value.failure.kind is kind


async def test_a_verifier_that_fails_makes_a_failure_and_no_reward():
    with pytest.raises(FailureError) as error:
        await answer(resolve(f"{SAMPLES}:Undecided"), "x")
    assert error.value.failure.kind is FailureKind.TIMEOUT
    assert str(error.value.failure.stage) == "verify"


async def test_an_environment_that_cannot_be_closed_does_not_take_its_result_back(caplog):
    async def close(self):
        raise OSError("no more")

    assert (await answer(env_with(score=lambda self, a, r: 1.0, close=close), "x")).reward == 1.0
    assert "no more" in caplog.text


async def test_an_environment_alone_closes_the_verifier_it_has_made():
    from quintain.envs import MathEnv

    env = MathEnv()
    task = MathEnv.tasks("train")[0]
    await env.reset(task, seed=0)
    assert (await env.step(Action.text(task.reference))).reward == 1.0
    await env.close()
    await env.close()
