"""From per-token values to the scalar that `backward` is called on.

Invariant: the *sum* of the scalars over all micro-batches and ranks of an optimiser step is the loss of the
whole batch, because every divisor is a global count (`bnpo` excepted, by its definition). Under DDP, which
averages gradients over ranks, multiply by the number of ranks.

As in TRL 1.16, a row whose mask is empty (a truncated one, say) contributes 0, counts in `rows` and not in
`tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quintain.trainers.losses.inputs import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Counts over the whole batch of an optimiser step, over all micro-batches and ranks.

    rows: rows of the batch, those with an empty mask, and those left out of micro-batches because their
        advantage is 0, included; rows of failed trajectories are not rows of the batch.
    tokens: mask entries that are True, of those same rows; those of masked rows (truncated completions) are not.
    max_completion_length: the length limit in tokens, L_max of Dr. GRPO.
    """

    rows: int
    tokens: int
    max_completion_length: int

    def __post_init__(self) -> None:
        if self.rows < 0 or self.tokens < 0 or self.max_completion_length < 1:
            raise ValueError(
                "denominators: expected rows and tokens of at least 0, max_completion_length of at least 1; "
                f"got {self.rows}, {self.tokens} and {self.max_completion_length}"
            )


Reduction = Callable[[Tensor, LossInputs, Denominators], Tensor]


def row_mean_of_means(loss: Tensor, inputs: LossInputs, totals: Denominators) -> Tensor:
    """Mean over rows of each row's token mean (GRPO, SAPO)."""
    return inputs.row_mean(loss).sum() / max(totals.rows, 1)


def row_mean_of_sums(loss: Tensor, inputs: LossInputs, totals: Denominators) -> Tensor:
    """Mean over rows of each row's token sum (LUSPO)."""
    return loss.sum() / max(totals.rows, 1)


def sum_over_longest(loss: Tensor, inputs: LossInputs, totals: Denominators) -> Tensor:
    """Σ / (rows · L_max) (Dr. GRPO)."""
    return loss.sum() / (max(totals.rows, 1) * totals.max_completion_length)


def sum_over_tokens(loss: Tensor, inputs: LossInputs, totals: Denominators) -> Tensor:
    """Σ / tokens of the global batch (DAPO, CISPO, VESPO)."""
    return loss.sum() / max(totals.tokens, 1)


def local_token_mean(loss: Tensor, inputs: LossInputs, totals: Denominators) -> Tensor:
    """Token mean of this micro-batch, weighted by its share of the rows (BNPO).

    The one reduction that depends on how the batch was cut. TRL weights micro-batches equally and gives them
    equal numbers of rows; the share of the rows is the same there, and still adds up to 1 where they differ.
    """
    return loss.sum() / inputs.mask.sum().clamp(min=1) * (inputs.rows / max(totals.rows, 1))
