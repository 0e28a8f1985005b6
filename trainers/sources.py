"""Where batches come from: what the loop asks of a source, and the source that samples.

Invariant: the batch of a step is the same each time it is asked for, so that a step may be done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from typing import Protocol, TypeVar, runtime_checkable

from quintain.failure import QuintainError
from quintain.trainers.examples import Example
from quintain.trajectory import Group

Batch = TypeVar("Batch", bound=Sized, covariant=True)
"""What an algorithm makes rows of; its length is what a run has consumed (groups, or examples)."""


class BatchSource(Protocol[Batch]):
    """What gives the loop its batches."""

    def batch(self, step: int) -> Batch:
        """The batch of `step`. FailureError (lost) where weights must be published before it can be had."""


@runtime_checkable
class Tells(Protocol):
    """A source with figures of its last batch, for the metrics."""

    figures: dict[str, float]


class RolloutSource:
    """Fresh groups, sampled by the policy: those of the rollout server (`RolloutClient`)."""

    def __init__(self, rollout: BatchSource[Sequence[Group]]) -> None:
        self._rollout = rollout

    def batch(self, step: int) -> Sequence[Group]:
        """The groups of `step`. QuintainError where every episode failed."""
        groups = self._rollout.batch(step)
        failed = Counter(str(row.failure) for group in groups for row in group.trajectories if row.failure is not None)
        total = sum(len(group.trajectories) for group in groups)
        if failed.total() == total:
            what, times = failed.most_common(1)[0]
            raise QuintainError(f"all {total} episodes of step {step + 1} failed, {times} of them with: {what}")
        return groups


class WithExamples:
    """Fresh groups, and examples of a data set behind them in the same batch."""

    def __init__(self, sampled: BatchSource[Sequence[Group]], examples: BatchSource[Sequence[Example]]) -> None:
        self._sampled, self._examples = sampled, examples

    def batch(self, step: int) -> list[Group | Example]:
        """The groups and the examples of `step`."""
        return [*self._sampled.batch(step), *self._examples.batch(step)]

    @property
    def figures(self) -> dict[str, float]:
        """What both tell of their last batch."""
        told = (source.figures for source in (self._sampled, self._examples) if isinstance(source, Tells))
        return {name: value for figures in told for name, value in figures.items()}
