"""Rows: what is trained on, whatever it was made of, and the counts of the whole batch that a loss divides by.

Invariants: a failure is in no row and in no count; the counts are of the whole batch, before anything is left out of
the forward pass, so that results do not depend on how a batch is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quintain.trajectory import Group, Segment, Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A segment with its credit. Rows with equal `prefix` may share a token tree."""

    segment: Segment
    prefix: int
    advantage: float
    masked: bool = False  # counted, but not trained on (a truncated completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a loss needs to know of the whole batch of an optimiser step, over all micro-batches and ranks.

    rows: rows of the batch, those with an empty mask, and those left out of micro-batches because their
        advantage is 0, included; rows of failed trajectories are not rows of the batch.
    tokens: mask entries that are True, of those same rows; those of masked rows (truncated completions) are not.
    max_completion_length: the length limit in tokens, L_max of Dr. GRPO.
    entropy_threshold: the least entropy of a token that is trained on, in nats; None: any.
    """

    rows: int
    tokens: int
    max_completion_length: int
    entropy_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.rows < 0 or self.tokens < 0 or self.max_completion_length < 1:
            raise ValueError(
                "totals: expected rows and tokens of at least 0, max_completion_length of at least 1; "
                f"got {self.rows}, {self.tokens} and {self.max_completion_length}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a step, the counts of the whole batch, and what to log."""

    rows: tuple[Row, ...]
    totals: Totals
    metrics: dict[str, float]

    def trained(self, inert: Callable[[Row], bool]) -> tuple[Row, ...]:
        """The rows that need a forward pass: all that are neither masked nor `inert`."""
        return tuple(row for row in self.rows if not row.masked and not inert(row))


def failures_of(groups: Sequence[Group]) -> Counter[str]:
    """How many trajectories failed, by what happened."""
    return Counter(str(row.failure) for group in groups for row in group.trajectories if row.failure is not None)


def described(trajectories: Sequence[Trajectory], rows: Sequence[Row], version: int) -> dict[str, float]:
    """Lengths, endings and staleness, under TRL's names where it has them."""
    lived = [row for row in trajectories if row.failure is None]
    out = {"failures": float(len(trajectories) - len(lived)), "segments_forked": float(len(rows) - len(lived))}
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
