"""What an algorithm is to the learner: rows with credit out of groups, and a loss on them.

The learner and the loop know this file and no algorithm. Invariants: an algorithm has no state, its loss is a pure
function, and its parts over the micro-batches of a batch add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metrics
from quintain.trainers.rows import Row, Rows, Totals
from quintain.trajectory import Group


class Pass(StrEnum):
    """What is computed of a batch without a gradient, before the first update on it."""

    REF = "ref"
    """Log-probabilities under the reference: the policy before training."""
    ENTROPY = "entropy"
    """Entropies under the policy."""


class Algorithm(Protocol):
    """One file of `algorithms` each."""

    passes: frozenset[Pass]

    def rows(self, groups: Sequence[Group], *, version: int) -> Rows:
        """The rows of a batch with their credit; `version` is the trainer's. QuintainError where it cannot be given."""

    def inert(self, row: Row) -> bool:
        """Whether `row` has no loss and no gradient, so that it need not be run at all."""

    def settled(self, totals: Totals, entropies: Tensor) -> Totals:
        """`totals` with what follows from the batch's entropies [T]. Asked after Pass.ENTROPY alone."""

    def loss(self, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """A micro-batch's part of the loss, a scalar with a gradient, and of the metrics."""
