"""DPO and its family: a pair's two log-ratios to the reference against each other.

The chosen and the rejected completion are one unit, and their prompt is run once (they share a token tree). Losses that
sort pairs sort all of a step's, which are then one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from quintain.config.offline import DPOConfig
from quintain.config.preference import SORTED
from quintain.trainers.algorithms.base import DatasetAlgorithm, Pass
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metrics, fetched, token_metrics
from quintain.trainers.losses.preference import pair_losses, pair_metrics, pairs_of
from quintain.trainers.rows import Rows, Totals


class DPO(DatasetAlgorithm[DPOConfig]):
    """The losses on pairs that `config` names."""

    def __init__(self, config: DPOConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.passes = frozenset() if config.precompute_ref_log_probs else frozenset({Pass.REF})

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """Two rows for each pair, chosen and rejected; the tokens that are counted are the chosen's."""
        rows = example_rows(data, counted=0)
        together = self.config.train_batch_size if SORTED & set(self.config.loss_type) else 1
        return replace(rows, rows=tuple(replace(row, unit=row.unit // together) for row in rows.rows))

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over pairs."""
        pairs = pairs_of(inputs, ld_alpha=self.config.ld_alpha, log_mass=inputs.log_mass)
        losses = pair_losses(pairs, self.config, mean_chosen_tokens=totals.tokens / max(totals.units, 1))
        drafts = pair_metrics(pairs, self.config.beta) | token_metrics(inputs, inputs.row % 2 == 0)
        return losses.sum() / max(totals.units, 1), fetched(drafts)
