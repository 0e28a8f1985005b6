"""ORPO: the likelihood of the chosen, prompt included, and the odds of the chosen against the rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from quintain.config.offline import ORPOConfig
from quintain.trainers.algorithms.base import DatasetAlgorithm
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched, token_metrics
from quintain.trainers.losses.preference import odds_ratio_losses, pair_metrics_of
from quintain.trainers.rows import Rows, Totals


class ORPO(DatasetAlgorithm[ORPOConfig]):
    """Odds ratio preference optimisation (arXiv 2403.07691)."""

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """Two rows for each pair; the prompt of the chosen is trained on too, `answer` says what is not prompt."""
        whole = [replace(x, trained=(((1, len(x.ids[0])),), x.trained[1])) for x in data]
        rows = example_rows(whole, counted=0)
        starts = [spans[0][0] for example in data for spans in example.trained]
        return rows.having(
            [
                {"answer": np.flatnonzero(row.segment.mask) >= start}
                for row, start in zip(rows.rows, starts, strict=True)
            ]
        )

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over the chosen's tokens of −ℓ, and the mean over pairs of the odds ratio's loss."""
        answer, is_chosen = inputs.columns["answer"].to(inputs.logp.dtype), inputs.row % 2 == 0
        means = inputs.row_sum(inputs.logp * answer) / inputs.row_sum(answer).clamp(min=1)
        chosen, rejected = means[0::2], means[1::2]
        losses, log_odds = odds_ratio_losses(chosen, rejected, self.config.beta)
        beta = self.config.beta
        drafts = pair_metrics_of(chosen, rejected, beta * chosen, beta * rejected) | token_metrics(inputs, is_chosen)
        every = log_odds < float("inf")
        drafts["log_odds_chosen"] = draft(Kind.MEAN, log_odds, every)
        drafts["log_odds_ratio"] = draft(Kind.MEAN, -losses / beta, every)
        drafts["nll_loss"] = draft(Kind.MEAN, -inputs.logp, is_chosen)
        loss = -inputs.logp[is_chosen].sum() / max(totals.tokens, 1) + losses.sum() / max(totals.units, 1)
        return loss, fetched(drafts)
