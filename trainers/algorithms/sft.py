"""SFT: the likelihood of what is trained on; `dft` weighs each token by the policy's own probability of it."""

from __future__ import annotations

from torch import Tensor

from quintain.config.offline import SFTConfig
from quintain.trainers.algorithms.base import DatasetAlgorithm
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metrics, fetched, token_metrics
from quintain.trainers.rows import Totals


class SFT(DatasetAlgorithm[SFTConfig]):
    """Supervised fine-tuning with the options `config`."""

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over all tokens of −ℓ, or of −sg(p)·ℓ (DFT, arXiv 2508.05629)."""
        weight = inputs.logp.detach().exp() if self.config.loss_type == "dft" else 1.0
        return -(weight * inputs.logp).sum() / max(totals.tokens, 1), fetched(token_metrics(inputs))
