"""REINFORCE++ against verl's published formula, written again on padded matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quintain.config import ReinforceConfig
from quintain.messages import assistant
from quintain.trainers.algorithms.reinforce import ReinforcePlusPlus
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

GROUPS, MEMBERS, LONGEST = 3, 4, 9


def batch(rng: np.random.Generator) -> tuple[list[Group], np.ndarray, np.ndarray]:
    """Groups of episodes of one turn, their lengths [N] and rewards [N]."""
    lengths, rewards = rng.integers(1, LONGEST + 1, GROUPS * MEMBERS), rng.normal(size=GROUPS * MEMBERS)

    def episode(i: int) -> Trajectory:
        n = int(lengths[i])
        said = Turn([1, 2], [3] * n, [-1.0] * n, Finish.STOP, (VersionSpan(0, 0, n),), assistant("x"))
        g, member = divmod(i, MEMBERS)
        return Trajectory(f"{i}", f"{g}", "k", g, member, 0, (said,), Ending.TERMINATED, float(rewards[i]))

    made = [Group(f"{g}", g, tuple(episode(i) for i in range(g * MEMBERS, (g + 1) * MEMBERS))) for g in range(GROUPS)]
    return made, lengths, rewards


def published(
    scores: np.ndarray, kl: np.ndarray, mask: np.ndarray, *, gamma: float, coef: float, baseline: bool
) -> np.ndarray:
    """[N, L]: verl's `compute_reinforce_plus_plus(_baseline)_outcome_advantage`, the KL being in the rewards.

    Returns run backwards over the response; the baseline is the group's mean of the scores. Then
    `masked_whiten`: (x − mean)·rsqrt(var + 1e-8) over the mask, the variance times n/(n − 1), and times the mask.
    """
    if baseline:
        scores = scores - scores.reshape(GROUPS, MEMBERS).mean(1).repeat(MEMBERS)
    rewards = -coef * kl * mask
    rewards[np.arange(len(scores)), mask.sum(1) - 1] += scores
    returns, running = np.zeros_like(rewards), np.zeros(len(scores))
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + gamma * running
        returns[:, t] = running
        running = running * mask[:, t]
    count = mask.sum()
    mean = (returns * mask).sum() / count
    variance = (((returns - mean) ** 2) * mask).sum() / count * count / (count - 1)
    return (returns - mean) / np.sqrt(variance + 1e-8) * mask


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("options", [{}, {"gamma": 0.9}, {"kl_coef": 0.3}, {"kl_coef": 0.3, "gamma": 0.7}], ids=str)
def test_advantages_are_the_published_ones(options: dict[str, Any], baseline: bool) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        groups, lengths, rewards = batch(rng)
        mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
        old, ref = rng.normal(size=(2, *mask.shape))
        name = "reinforce_plus_plus_baseline" if baseline else "reinforce_plus_plus"
        algorithm = ReinforcePlusPlus(ReinforceConfig(algorithm=name, **options), longest=LONGEST)  # type: ignore[arg-type]
        rows = algorithm.rows(groups, version=0).having(
            [{"old": old[i, :n], "ref": ref[i, :n]} for i, n in enumerate(lengths)]
        )
        expected = published(
            rewards, old - ref, mask, gamma=options.get("gamma", 1.0), coef=options.get("kl_coef", 0.0),
            baseline=baseline,
        )  # fmt: skip
        for i, row in enumerate(algorithm.credit(rows).rows):
            np.testing.assert_allclose(
                row.columns["advantage"], expected[i, : lengths[i]], rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}"
            )


def test_a_batch_that_a_limit_cut_short_everywhere_gives_no_advantage_and_ends_no_run() -> None:
    groups, _, _ = batch(np.random.default_rng(0))
    cut = [
        replace(
            group,
            trajectories=tuple(
                replace(x, turns=tuple(replace(turn, finish=Finish.LENGTH) for turn in x.turns))
                for x in group.trajectories
            ),
        )
        for group in groups
    ]
    algorithm = ReinforcePlusPlus(ReinforceConfig(mask_truncated_completions=True), longest=LONGEST)
    rows = algorithm.credit(algorithm.rows(cut, version=0)).rows
    assert len(rows) == GROUPS * MEMBERS
    assert all(row.masked and not row.columns["advantage"].any() for row in rows)
