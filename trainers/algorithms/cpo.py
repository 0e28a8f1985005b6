"""CPO, SimPO and AlphaPO: pairs without a reference, and the likelihood of the chosen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quintain.config.offline import CPOConfig
from quintain.trainers.algorithms.base import DatasetAlgorithm
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched, token_metrics
from quintain.trainers.losses.preference import cpo_losses, pair_metrics_of
from quintain.trainers.rows import Rows, Totals


class CPO(DatasetAlgorithm[CPOConfig]):
    """The loss that `config` names."""

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """Two rows for each pair, chosen and rejected; the tokens that are counted are the chosen's."""
        return example_rows(data, counted=0)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over pairs, and the mean over the chosen's tokens of −ℓ with its weight."""
        config = self.config
        by_token = config.loss_type in ("simpo", "ipo")
        logps = inputs.row_mean(inputs.logp) if by_token else inputs.row_sum(inputs.logp)
        chosen, rejected = logps[0::2], logps[1::2]
        losses, won, lost = cpo_losses(chosen, rejected, config)
        likelihood = -inputs.logp[is_chosen := inputs.row % 2 == 0]
        drafts = pair_metrics_of(chosen, rejected, won, lost) | token_metrics(inputs, is_chosen)
        drafts["nll_loss"] = draft(Kind.MEAN, -inputs.logp, is_chosen)
        loss = losses.sum() / max(totals.units, 1) + config.cpo_alpha * likelihood.sum() / max(totals.tokens, 1)
        return loss, fetched(drafts)
