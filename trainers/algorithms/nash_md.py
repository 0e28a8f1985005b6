"""Nash-MD (arXiv 2312.00886): the policy learns to beat what it plays against, and is held to the reference.

It plays against the geometric mixture of policy and reference, π^(1 − α)·π_ref^α with α = `mixture_coef`. Nothing is
sampled from it: an answer's chance of winning is counted over the other members of its group, which the policy sampled,
each with its importance (π_ref / π)^α in the group; a tie counts half. At α = 0 that is self-play.
"""

from __future__ import annotations

from torch import Tensor

from quintain.config import NashMDConfig
from quintain.trainers.algorithms.base import EpisodeAlgorithm, Pass
from quintain.trainers.estimators import win_rates
from quintain.trainers.losses.inputs import LossInputs, cleaned
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.policy import always_logged
from quintain.trainers.rows import Row, Rows, Totals


class NashMD(EpisodeAlgorithm[NashMDConfig]):
    """REINFORCE on the chance of winning."""

    def __init__(self, config: NashMDConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.passes = frozenset({Pass.REF} if config.needs_reference else ())
        if config.mixture_coef > 0:
            self.passes |= {Pass.OLD}

    def credit(self, rows: Rows) -> Rows:
        """P(win) − 1/2, the half being what an answer like the others' has."""
        episodes = rows.episodes
        reward = episodes.total(self.config.reward_weights)
        lived = reward[~episodes.failed]
        mixture = -self.config.mixture_coef * rows.sums(row.log_ratio_to_reference for row in rows.rows)
        wins, others = win_rates(reward, episodes.group, failed=episodes.failed, log_weight=mixture)
        logged = {"reward": lived, "opponents": others[~episodes.failed]}
        return rows.crediting(wins - 0.5, {name: float(x.mean()) if len(x) else 0.0 for name, x in logged.items()})

    def inert(self, row: Row) -> bool:
        """Without an advantage and a KL there is no gradient."""
        return self.config.beta == 0 and not row.columns["advantage"].any()

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """Mean over rows of β·Σ sg[ℓ − ref]·ℓ − (P − 1/2)·Σ ℓ, as in TRL: the KL's gradient by REINFORCE, too."""
        x = cleaned(inputs)
        loss = -x.advantage * x.logp
        drafts = always_logged(x, x.logp - x.proximal_logp, None, per_row=False)
        if x.ref_logp is not None and self.config.beta > 0:
            log_ratio = (x.logp - x.ref_logp).detach()
            loss = loss + self.config.beta * log_ratio * x.logp
            drafts["kl"] = draft(Kind.MEAN, log_ratio, x.mask)
        return x.row_sum(loss).sum() / max(totals.rows, 1), fetched(drafts)
