"""The families of reasoning-gym as environments: splits, levels, rewards, and what is wrong in one line."""

from __future__ import annotations

import pytest

from quintain.envs import Action, LocalClient, ReasoningGymEnv, check_environment
from quintain.failure import QuintainError


async def test_the_right_answer_gets_the_familys_own_score_and_a_wrong_one_does_not():
    async with LocalClient(ReasoningGymEnv, {"family": "basic_arithmetic", "heldout": 2}) as client:
        task = client.tasks("train")[3]
        rewards = []
        for answer in (task.reference["entry"]["answer"], "nothing"):
            env = client.episode()
            await env.reset(task, seed=0)
            rewards.append((await env.step(Action.text(f"So: <answer>{answer}</answer>"))).reward)
    assert rewards[0] == 1.0
    assert rewards[1] < 0.1


@pytest.mark.parametrize(("family", "config"), [("leg_counting", {}), ("sudoku", {"min_empty": 9, "max_empty": 12})])
async def test_an_environment_of_a_family_is_sound(family, config):
    options = {"family": family, "config": config, "heldout": 3}
    assert await check_environment(ReasoningGymEnv, options=options, tasks=2) == []


def test_training_never_asks_a_question_that_is_held_out():
    options = {"family": "coin_flip", "config": {"min_trials": 1, "max_trials": 4}, "heldout": 3}
    heldout = {task.prompt for task in ReasoningGymEnv.tasks("heldout", **options)}
    train = ReasoningGymEnv.tasks("train", **options)
    asked = {train[i].prompt for i in range(60)}
    assert len(heldout) == 3
    assert asked
    assert not asked & heldout
    assert ReasoningGymEnv.tasks("train", **options)[7] == train[7]
    assert ReasoningGymEnv.tasks("train", **options, seed=1)[7] != train[7]


def test_a_level_is_the_familys_own_and_config_goes_before_it():
    def animals(**options):
        tasks = ReasoningGymEnv.tasks("train", family="leg_counting", heldout=1, **options)
        return max(len(tasks[i].reference["entry"]["metadata"]["animals"]) for i in range(12))

    assert animals(level=0) < animals(level=3)
    assert animals(level=3, config={"min_animals": 1, "max_animals": 1}) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"family": "leg_countin"}, "reasoning-gym has no family 'leg_countin': did you mean 'leg_counting'"),
        ({"family": "leg_counting", "level": 99}, "the family leg_counting: its levels are 0 to"),
        ({"family": "leg_counting", "config": {"sede": 1}}, "the family leg_counting: .*sede"),
        ({"family": "leg_counting", "config": {"min_animals": -3}}, "the family leg_counting: min_animals must be"),
        ({"family": "leg_counting", "config": {"size": 9}}, "the family leg_counting: its size is not yours to give"),
        ({"family": "leg_counting", "heldout": 0}, "heldout must be at least 1"),
        ({"family": "coin_flip", "config": {"min_trials": 2, "max_trials": 2}}, "coin_flip has too few different"),
    ],
)
def test_what_is_wrong_is_one_line(options, complaint):
    with pytest.raises(QuintainError, match=complaint) as error:
        ReasoningGymEnv.tasks("train", **options)
    assert "\n" not in str(error.value)
