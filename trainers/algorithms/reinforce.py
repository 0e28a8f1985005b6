"""REINFORCE++ (arXiv 2501.03262): a token's advantage is what is still to come of the reward, whitened over the batch.

The KL to the reference is part of the reward, at each token (`kl_coef`); the variant with a baseline first subtracts
the mean of the group from the rewards. The loss is one of those of the GRPO family.
"""

from __future__ import annotations

import numpy as np

from quintain.config import ReinforceConfig
from quintain.trainers.algorithms.base import Pass
from quintain.trainers.algorithms.grpo import PolicyLoss
from quintain.trainers.estimators import discounted, group_advantages, whitened
from quintain.trainers.rows import Rows, episode_spans, per_row


class ReinforcePlusPlus(PolicyLoss[ReinforceConfig]):
    """Whitened returns and the loss that `config` says."""

    def __init__(self, config: ReinforceConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        if config.kl_coef > 0:
            self.passes = self.passes | {Pass.OLD, Pass.REF}

    def credit(self, rows: Rows) -> Rows:
        """The episode's reward comes at its last token, the KL of each token at that token."""
        config, episodes = self.config, rows.episodes
        has_baseline = config.algorithm == "reinforce_plus_plus_baseline"
        group = episodes.group if has_baseline else np.zeros_like(episodes.group)
        weights = tuple(config.reward_weights.values()) if config.reward_weights else None
        compared = group_advantages(
            episodes.reward, group, failed=episodes.failed, weights=weights, scale_rewards="none"
        )
        score = compared.advantage if has_baseline else np.nan_to_num(episodes.total(config.reward_weights))
        live = [row for row in rows.rows if not row.masked]
        kls = [np.zeros(row.tokens) if (kl := row.log_ratio_to_reference) is None else kl for row in live]
        returns = -config.kl_coef * np.concatenate([np.empty(0), *kls])
        for n, span in episode_spans(live).items():
            returns[span.stop - 1] += score[n]
            returns[span] = discounted(returns[span], config.gamma)
        parts = iter(per_row(whitened(returns).astype(np.float32), live))
        columns = [{"advantage": np.float32(0) if row.masked else next(parts)} for row in rows.rows]
        return self.selected(rows.having(columns, compared.metrics))
