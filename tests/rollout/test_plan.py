"""From the experiment's file to the plan: what rollout's options mean, and what is said of mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from quintain.config import ExperimentConfig, parse_config
from quintain.failure import QuintainError
from quintain.rollout.rules.groups import Patience, Rewards
from quintain.rollout.rules.plan import Plan
from quintain.rollout.server.process import make_plan

FILE = "model: {path: m}\nenvironment: {name: math}\n"


def config(*overrides: str) -> ExperimentConfig:
    return parse_config(FILE, overrides)


def made(*overrides: str) -> Plan:
    return make_plan(config(*overrides), sizes=[None], model_length=512)


def test_by_default_every_group_is_used_and_every_episode_is_waited_for() -> None:
    plan = made()
    assert (plan.oversample, plan.refills, plan.patience) == (0, None, None)
    assert plan.rewards == Rewards()
    assert plan.follow_engine
    assert plan.sample_timeout_s == 3600.0


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["rollout.dynamic_sampling=true", "trainer.prompts_per_step=3"], "refills", 12),
        (["rollout.dynamic_sampling=true", "rollout.max_refills=5"], "refills", 5),
        (["rollout.oversample=2"], "oversample", 2),
        (["rollout.straggler=fail", "rollout.straggler_factor=2.5"], "patience", Patience(2.5, 60.0)),
        (["rollout.concurrency=fixed"], "follow_engine", False),
        (["rollout.sample_timeout_s=null"], "sample_timeout_s", None),
        (["trainer.reward_weights={a: 2.0}"], "rewards", Rewards((("a", 2.0),))),
        (
            ["trainer.reward_weights={a: 1.0}", "trainer.multi_objective_aggregation=normalize_then_sum"],
            "rewards",
            Rewards((("a", 1.0),), apart=True),
        ),
    ],
)
def test_an_option_of_the_file_reaches_the_plan(overrides: list[str], field: str, value: Any) -> None:
    assert getattr(made(*overrides), field) == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.max_refills=3", "max_refills bounds dynamic_sampling, which is off"),
        ("rollout.straggler=drop", "expected 'wait' or 'fail', got 'drop'"),
        ("rollout.straggler_factor=0.5", "rollout.straggler_factor"),
        ("rollout.concurrency=max", "expected 'fixed' or 'auto', got 'max'"),
        ("rollout.oversample=-1", "rollout.oversample"),
        ("rollout.sample_timeout_s=0", "rollout.sample_timeout_s"),
    ],
)
def test_a_mistake_is_one_line(override: str, says: str) -> None:
    with pytest.raises(QuintainError) as caught:
        config(override)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
