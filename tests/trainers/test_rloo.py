"""RLOO against TRL 1.16's own code: advantages with the KL in the reward, value and gradient of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from quintain.config import RLOOConfig
from quintain.config.loss import LossOptions
from quintain.trainers.algorithms.rloo import RLOO
from quintain.trainers.estimators import leave_one_out
from quintain.trainers.losses.metrics import metric_values
from quintain.trainers.rows import Totals

from . import trl_oracle
from .loss_batches import LONGEST, ROWS, Batch, flat, make_batch, random_advantages, rows_of
from .test_update import groups

torch.set_num_threads(1)

TOTALS = Totals(rows=ROWS, tokens=1, max_completion_length=LONGEST)


def alone(batch: Batch) -> Batch:
    """TRL's RLOO knows no tokens of an environment."""
    batch.tool_mask[:] = 1
    return batch


@pytest.mark.parametrize(
    "options", [{}, {"normalize_advantages": True}, {"reward_clip_range": (0.3, 0.6)}, {"beta": 0.0}, {"beta": 0.5}]
)
def test_advantages_are_those_of_trl_the_kl_in_the_reward_included(options: dict[str, Any]) -> None:
    for seed in range(3):
        batch = alone(make_batch(seed))
        given = {"beta": 0.05} | options
        theirs, metrics = trl_oracle.score_rloo(batch, **given)
        inside = torch.arange(LONGEST)[None] < torch.tensor(batch.lengths)[:, None]
        assert batch.old_logp is not None
        kl = torch.where(inside, batch.old_logp - batch.ref_logp, 0.0).sum(1).numpy()
        ours = leave_one_out(
            batch.rewards.numpy(),
            np.arange(ROWS) // batch.group_size,
            penalty=given["beta"] * kl,
            clip=given.get("reward_clip_range"),
            normalize=given.get("normalize_advantages", False),
        )
        np.testing.assert_allclose(ours.advantage, theirs["advantages"].numpy(), rtol=1e-5, atol=1e-6)
        assert ours.metrics["reward"] == pytest.approx(metrics["reward"], rel=1e-6)
        assert ours.metrics["reward_std"] == pytest.approx(metrics["reward_std"], rel=1e-6)


@pytest.mark.parametrize(("epsilon", "epsilon_high"), [(0.2, 0.2), (0.5, 1.0), (0.0, 0.01)])
@pytest.mark.parametrize("drift", [0.05, 0.5])
def test_value_and_gradient_are_those_of_trl_and_of_any_cut(epsilon: float, epsilon_high: float, drift: float) -> None:
    config = RLOOConfig(epsilon=epsilon, epsilon_high=epsilon_high)
    rloo = RLOO(config, longest=LONGEST)
    for seed in range(3):
        batch, advantages = alone(make_batch(seed, drift=drift)), random_advantages(seed)
        inputs, _ = trl_oracle.score_rloo(batch)
        inputs["advantages"] = advantages
        expected, gradient = trl_oracle.loss_rloo(batch, inputs, epsilon=epsilon, epsilon_high=epsilon_high)
        whole = flat(batch, advantages, LossOptions())
        for parts in ([whole], [rows_of(whole, [1, 4, 0]), rows_of(whole, [2]), rows_of(whole, [3, 5])]):
            loss = torch.stack([rloo.loss("policy", part, TOTALS)[0] for part in parts]).sum()
            (found,) = torch.autograd.grad(loss, whole.logp, retain_graph=True)
            torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found, gradient.flatten(), rtol=1e-9, atol=1e-12)


def test_a_clipped_row_has_no_gradient_and_is_counted() -> None:
    rloo = RLOO(RLOOConfig(), longest=LONGEST)
    batch = alone(make_batch(1, drift=0.0))
    assert batch.old_logp is not None
    batch.old_logp[:] = batch.logp - 1.0  # every ratio is far above 1
    whole = flat(batch, torch.ones(ROWS, dtype=torch.float64), LossOptions())
    loss, metrics = rloo.loss("policy", whole, TOTALS)
    (gradient,) = torch.autograd.grad(loss, whole.logp)
    assert not gradient.any()
    assert metric_values(metrics)["clip_ratio/high_mean"] == 1.0


def test_the_kl_of_an_episode_is_that_of_all_its_rows_and_of_no_other() -> None:
    rloo = RLOO(RLOOConfig(beta=0.5), longest=8)
    rows = rloo.rows(groups(1), version=0)
    ones = [{"old": np.full(row.tokens, 1.0), "ref": np.zeros(row.tokens)} for row in rows.rows]
    credited = rloo.credit(rows.having(ones))
    tokens = rows.sums(np.ones(row.tokens) for row in rows.rows)
    expected = leave_one_out(rows.episodes.reward[:, 0] - 0.5 * tokens, rows.episodes.group).advantage
    for row in credited.rows:
        np.testing.assert_allclose(row.columns["advantage"], expected[row.trajectory], rtol=1e-5)
    assert credited.metrics["kl"] == pytest.approx(1.0)
