"""RLOO (arXiv 2402.14740): each member of a group is compared with the mean of the others.

The KL to the reference is part of the reward, summed over the episode before anybody is compared; the ratio that is
clipped is one for each row, the product over its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quintain.config import RLOOConfig
from quintain.trainers.algorithms.base import EpisodeAlgorithm, Pass
from quintain.trainers.estimators import leave_one_out
from quintain.trainers.losses.cores import row_draft
from quintain.trainers.losses.inputs import LossInputs, bounded_exp, cleaned
from quintain.trainers.losses.metrics import Kind, Metrics, fetched
from quintain.trainers.losses.policy import always_logged
from quintain.trainers.rows import Row, Rows, Totals


class RLOO(EpisodeAlgorithm[RLOOConfig]):
    """Leave-one-out advantages."""

    def __init__(self, config: RLOOConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.passes = frozenset({Pass.OLD, Pass.REF} if config.needs_reference else ())

    def credit(self, rows: Rows) -> Rows:
        """Every token of an episode gets its advantage over the others of its group."""
        config, episodes = self.config, rows.episodes
        kl = rows.sums(row.log_ratio_to_reference for row in rows.rows)
        advantages = leave_one_out(
            episodes.reward,
            episodes.group,
            failed=episodes.failed,
            weights=tuple(config.reward_weights.values()) if config.reward_weights else None,
            penalty=config.beta * kl,
            clip=config.reward_clip_range,
            normalize=config.normalize_advantages,
            names=episodes.names or None,
        )
        logged = {"kl": float(kl.sum() / max(rows.totals.tokens, 1))} if config.needs_reference else {}
        return rows.crediting(advantages.advantage, {**advantages.metrics, **logged})

    def inert(self, row: Row) -> bool:
        """Without an advantage there is no gradient."""
        return not row.columns["advantage"].any()

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """−min(ρ·A, clip(ρ)·A) of each row, ρ = exp(Σ ℓ − ℓ_old), averaged over rows."""
        x = cleaned(inputs)
        low, high = 1 - self.config.epsilon, 1 + self.config.clip_high
        log_ratio = x.logp - x.proximal_logp
        ratio, advantage = bounded_exp(x.row_sum(log_ratio)), x.row_mean(x.advantage)
        loss = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        is_low, is_high = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)
        flags = {"low_mean": is_low, "high_mean": is_high, "region_mean": is_low | is_high}
        drafts = {
            f"clip_ratio/{name}": row_draft(x, Kind.MEAN, flag.to(x.logp.dtype)[x.row]) for name, flag in flags.items()
        }
        drafts |= always_logged(x, log_ratio, None, per_row=False)
        return loss.sum() / max(totals.rows, 1), fetched(drafts)
