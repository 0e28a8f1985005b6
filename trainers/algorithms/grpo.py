"""GRPO: a group's rewards become advantages relative to each other; the losses are those of `losses`.

What this file decides is the credit: which row gets which advantage, and which rows are trained on at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from quintain.config import TrainerConfig
from quintain.failure import QuintainError
from quintain.trainers.algorithms.base import Pass
from quintain.trainers.estimators import group_advantages
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metrics
from quintain.trainers.losses.offpolicy import entropy_threshold
from quintain.trainers.losses.policy import policy_loss, reduce
from quintain.trainers.rows import Row, Rows, Totals, described
from quintain.trajectory import Group, Trajectory, to_segments


class GRPO:
    """Group-relative advantages and the loss that `config` says; `longest` is the completion limit in tokens."""

    def __init__(self, config: TrainerConfig, *, longest: int) -> None:
        self.config, self.longest = config, longest
        self._all_tokens = config.top_entropy_quantile >= 1.0
        wanted = {Pass.REF: config.beta > 0, Pass.ENTROPY: not self._all_tokens}
        self.passes = frozenset(name for name, needed in wanted.items() if needed)

    def rows(self, groups: Sequence[Group], *, version: int) -> Rows:
        """Advantages and rows of a step's groups; `version` is the trainer's."""
        config = self.config
        members = [(g, row) for g, group in enumerate(groups) for row in group.trajectories]
        failed = np.array([row.failure is not None for _, row in members], dtype=np.bool_)
        names = tuple(config.reward_weights or ())
        advantages = group_advantages(
            _rewards([row for _, row in members], names),
            np.array([g for g, _ in members]),
            failed=failed,
            weights=tuple(config.reward_weights.values()) if config.reward_weights else None,
            scale_rewards=config.scale_rewards,
            multi_objective_aggregation=config.multi_objective_aggregation,
            names=names or None,
        )
        rows = [
            Row(segment, g, float(advantage), config.mask_truncated_completions and trajectory.truncated)
            for (g, trajectory), advantage in zip(members, advantages.advantage, strict=True)
            if trajectory.failure is None
            for segment in to_segments(trajectory)
        ]
        tokens = sum(int(row.segment.mask.sum()) for row in rows if not row.masked)
        totals = Totals(rows=len(rows), tokens=tokens, max_completion_length=self.longest)
        metrics = {**advantages.metrics, **described([row for _, row in members], rows, version)}
        return Rows(tuple(rows), totals, metrics)

    def inert(self, row: Row) -> bool:
        """Whether `row` need not be run: it has no advantage, and nothing else of the loss needs it."""
        return row.advantage == 0.0 and self.config.zero_advantage_is_inert and self._all_tokens

    def settled(self, totals: Totals, entropies: Tensor) -> Totals:
        """`totals` with the entropy above which tokens are trained on."""
        return replace(totals, entropy_threshold=entropy_threshold(entropies, self.config.top_entropy_quantile))

    def loss(self, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The policy loss of `losses`, reduced."""
        per_token = policy_loss(inputs, self.config, entropy_threshold=totals.entropy_threshold)
        return reduce(per_token, inputs, self.config.loss_type, totals), per_token.metrics


def _rewards(rows: Sequence[Trajectory], names: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[N, K]: the named parts, or the whole reward; NaN where the trajectory failed."""
    table = np.full((len(rows), max(1, len(names))), np.nan)
    for i, row in enumerate(rows):
        if row.failure is not None:
            continue
        if not names:
            table[i, 0] = row.reward
            continue
        for k, name in enumerate(names):
            if name not in row.rewards:
                known = ", ".join(row.rewards) or "none"
                raise QuintainError(
                    f"trainer.reward_weights: the environment gives no reward '{name}' (it gives {known})"
                )
            table[i, k] = row.rewards[name]
    return table
