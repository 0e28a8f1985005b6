"""GRPO: a group's rewards become advantages relative to each other; the losses are those of `losses`.

What this file decides is the credit: which row gets which advantage, which rows are trained on at all, and the global
counts that reductions divide by. Invariants: a failure is in no mean, no deviation and no denominator; the counts
are of the whole batch, before anything is left out of the forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quintain.config import TrainerConfig
from quintain.failure import QuintainError
from quintain.trainers.estimators import group_advantages
from quintain.trainers.losses.reduction import Denominators
from quintain.trajectory import Group, Segment, Trajectory, to_segments


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A segment with its credit. `group` is shared by rows whose prompts may be shared."""

    segment: Segment
    group: int
    advantage: float
    masked: bool = False  # counted, but not trained on (a truncated completion)


@dataclass(frozen=True, slots=True, eq=False)
class Credited:
    """The rows of a step, the counts of the whole batch, and what to log."""

    rows: tuple[Row, ...]
    denominators: Denominators
    metrics: dict[str, float]

    def trained(self, *, skip_zero: bool) -> tuple[Row, ...]:
        """The rows that need a forward pass; `skip_zero` leaves out those that have no gradient."""
        return tuple(row for row in self.rows if not row.masked and not (skip_zero and row.advantage == 0.0))


def credit(groups: Sequence[Group], config: TrainerConfig, *, version: int, longest: int) -> Credited:
    """Advantages and rows of a step's groups; `version` is the trainer's, `longest` the completion limit in tokens."""
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
    denominators = Denominators(rows=len(rows), tokens=tokens, max_completion_length=longest)
    metrics = {**advantages.metrics, **_described([row for _, row in members], rows, version)}
    return Credited(tuple(rows), denominators, metrics)


def failures_of(groups: Sequence[Group]) -> Counter[str]:
    """How many trajectories failed, by what happened."""
    return Counter(str(row.failure) for group in groups for row in group.trajectories if row.failure is not None)


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


def _described(trajectories: Sequence[Trajectory], rows: Sequence[Row], version: int) -> dict[str, float]:
    """Lengths, endings and staleness, under TRL's names where it has them."""
    lived = [row for row in trajectories if row.failure is None]
    out = {
        "failures": float(len(trajectories) - len(lived)),
        "segments_forked": float(len(rows) - len(lived)),
    }
    if not lived:
        return out
    lengths = np.array([row.output_tokens for row in lived])
    cut = np.array([row.truncated for row in lived])
    lags = np.concatenate([version - row.segment.versions[row.segment.mask] for row in rows]) if rows else np.zeros(1)
    return out | {
        "num_tokens": float(lengths.sum()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(cut.mean()),
        "completions/mean_terminated_length": float(lengths[~cut].mean()) if (~cut).any() else 0.0,
        "staleness/mean": float(lags.mean()),
        "staleness/max": float(lags.max()),
        "turns/mean": float(np.mean([len(row.turns) for row in lived])),
    }
