"""REINFORCE++ (arXiv 2501.03262): a token's advantage is what is still to come of the reward, whitened over the batch.

The KL to the reference is part of the reward, at each token (`kl_coef`); the variant with a baseline first subtracts
the mean of the group from the rewards. The loss is one of those of the GRPO family.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from quintain.config import ReinforceConfig
from quintain.trainers.algorithms.base import Pass
from quintain.trainers.algorithms.grpo import PolicyLoss
from quintain.trainers.estimators import discounted, group_advantages, whitened
from quintain.trainers.rows import Rows


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
        of_episode: dict[int, list[int]] = defaultdict(list)
        for i, row in enumerate(rows.rows):
            if not row.masked:
                of_episode[row.trajectory].append(i)
        returns = [np.zeros(row.tokens) for row in rows.rows]
        for n, indices in of_episode.items():
            kls = [rows.rows[i].log_ratio_to_reference for i in indices]
            parts = [
                np.zeros(rows.rows[i].tokens) if kl is None else -config.kl_coef * kl.astype(np.float64)
                for i, kl in zip(indices, kls, strict=True)
            ]
            reward = np.concatenate(parts)
            reward[-1] += score[n]
            ends = np.cumsum([len(part) for part in parts])[:-1]
            for i, part in zip(indices, np.split(discounted(reward, config.gamma), ends), strict=True):
                returns[i] = part
        live = [i for indices in of_episode.values() for i in indices]
        values = whitened(np.concatenate([returns[i] for i in live])) if live else np.zeros(0)
        ends = np.cumsum([len(returns[i]) for i in live])[:-1]
        for i, part in zip(live, np.split(values, ends), strict=True):
            returns[i] = part
        columns = [{"advantage": part.astype(np.float32)} for part in returns]
        return self.selected(rows.having(columns, compared.metrics))
