"""From per-token values to the scalar that `backward` is called on.

Invariant: the *sum* of the scalars over all micro-batches and ranks of an optimiser step is the loss of the
whole batch, because every divisor is a global count (`bnpo` excepted, by its definition). Under DDP, which
averages gradients over ranks, multiply by the number of ranks.

As in TRL 1.16, a row whose mask is empty (a truncated one, say) contributes 0, counts in `rows` and not in `tokens`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.rows import Totals

Reduction = Callable[[Tensor, LossInputs, Totals], Tensor]


def row_mean_of_means(loss: Tensor, inputs: LossInputs, totals: Totals) -> Tensor:
    """Mean over rows of each row's token mean (GRPO, SAPO)."""
    return inputs.row_mean(loss).sum() / max(totals.rows, 1)


def row_mean_of_sums(loss: Tensor, inputs: LossInputs, totals: Totals) -> Tensor:
    """Mean over rows of each row's token sum (LUSPO)."""
    return loss.sum() / max(totals.rows, 1)


def sum_over_longest(loss: Tensor, inputs: LossInputs, totals: Totals) -> Tensor:
    """Σ / (rows · L_max) (Dr. GRPO)."""
    return loss.sum() / (max(totals.rows, 1) * totals.max_completion_length)


def sum_over_tokens(loss: Tensor, inputs: LossInputs, totals: Totals) -> Tensor:
    """Σ / tokens of the global batch (DAPO, CISPO, VESPO)."""
    return loss.sum() / max(totals.tokens, 1)


def local_token_mean(loss: Tensor, inputs: LossInputs, totals: Totals) -> Tensor:
    """Token mean of this micro-batch, weighted by its share of the rows (BNPO).

    The one reduction that depends on how the batch was cut. TRL weights micro-batches equally and gives them
    equal numbers of rows; the share of the rows is the same there, and still adds up to 1 where they differ.
    """
    return loss.sum() / inputs.mask.sum().clamp(min=1) * (inputs.rows / max(totals.rows, 1))
