"""GRPO: a group's rewards become advantages relative to each other; the losses are those of `losses`.

What this file decides is the credit: which row gets which advantage, and which rows are trained on at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintain.config import GRPOConfig, ReinforceConfig
from quintain.trainers.algorithms.base import EpisodeAlgorithm, Pass
from quintain.trainers.estimators import covariant_tokens, discounted, group_advantages, pass_at_k_advantages
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.offpolicy import entropy_threshold
from quintain.trainers.losses.policy import entropy_bonus, policy_loss, reduce
from quintain.trainers.rows import ENVIRONMENT, Row, Rows, Totals, turns_of

Options = TypeVar("Options", bound=GRPOConfig | ReinforceConfig)


class PolicyLoss(EpisodeAlgorithm[Options]):
    """The loss that `config` says, for those that differ in the credit.

    `state` is what it remembers from batch to batch, where the entropy has a target: the weight that follows it, and
    the one that counts in the next step.
    """

    def __init__(self, config: Options, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self._all_tokens = config.top_entropy_quantile >= 1.0
        adaptive = config.entropy_target is not None
        self.state = {"entropy_coef": config.entropy_coef, "entropy_bonus": 0.0} if adaptive else {}
        wanted = {
            Pass.REF: config.beta > 0,
            Pass.ENTROPY: not self._all_tokens,
            Pass.OLD: config.covariance != "none",
        }
        self.passes = frozenset(name for name, needed in wanted.items() if needed)

    def selected(self, rows: Rows) -> Rows:
        """`rows`, credited, with what follows from all of their tokens: which are covariant, and the least entropy; and
        with the environment's tokens, where they are trained on too."""
        if self.config.covariance != "none":
            rows = self._covariant(rows)
        if not self._all_tokens:
            rows = self._thresholded(rows)
        if self.config.env_token_loss_coef > 0:
            observing = tuple(row.observing() for row in rows.rows)
            rows = replace(rows, rows=observing, totals=rows.totals.of(observing))
        return replace(rows, metrics={**rows.metrics, **self.state})

    def _covariant(self, rows: Rows) -> Rows:
        live = [row for row in rows.rows if not row.masked]
        advantage, logp = (
            np.concatenate([*(row.columns[name] for row in live), np.empty(0)]) for name in ("advantage", "old")
        )
        config = self.config
        bounds = config.covariance_bounds if config.covariance == "clip" else None
        chosen = iter(covariant_tokens(advantage, logp, config.covariance_ratio, bounds=bounds, seed=len(logp)))
        columns = [
            {"covariant": np.array([0 if row.masked else next(chosen) for _ in range(row.tokens)], np.float32)}
            for row in rows.rows
        ]
        return rows.having(columns)

    def _thresholded(self, rows: Rows) -> Rows:
        known = [row.columns[Pass.ENTROPY] for row in rows.rows if not row.masked]
        entropies = torch.from_numpy(np.concatenate([*known, np.empty(0, np.float32)]))
        threshold = entropy_threshold(entropies, self.config.top_entropy_quantile)
        return replace(rows, totals=replace(rows.totals, entropy_threshold=threshold))

    def inert(self, row: Row) -> bool:
        """Whether `row` need not be run: it has no advantage, and nothing else of the loss needs it."""
        return self.config.zero_advantage_is_inert and self._all_tokens and not row.columns["advantage"].any()

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The policy loss of `losses`, reduced, less the entropy's bonus, and the loss on the environment's tokens."""
        config, everything = self.config, inputs
        if ENVIRONMENT in inputs.columns:
            inputs = replace(inputs, mask=inputs.mask & (inputs.columns[ENVIRONMENT] == 0))
        per_token = policy_loss(inputs, config, entropy_threshold=totals.entropy_threshold)
        loss, metrics = reduce(per_token, inputs, config.loss_type, totals), dict(per_token.metrics)
        coef = self.state.get("entropy_bonus", config.entropy_coef)
        if coef > 0:
            loss = loss - coef * entropy_bonus(inputs, totals)
        if config.env_token_loss_coef > 0:
            theirs = everything.mask & ~inputs.mask
            surprise = torch.where(theirs, -inputs.logp, 0.0)
            loss = loss + config.env_token_loss_coef * surprise.sum() / max(totals.environment_tokens, 1)
            metrics |= fetched({"env_token_loss": draft(Kind.MEAN, surprise, theirs)})
        return loss, metrics

    def remember(self, figures: Mapping[str, float]) -> None:
        """With a target, the entropy's weight rises after a step whose entropy was too low, and falls after others."""
        config = self.config
        if config.entropy_target is not None and "entropy" in figures:
            low = figures["entropy"] <= config.entropy_target
            moved = self.state["entropy_coef"] + (config.entropy_coef_delta if low else -config.entropy_coef_delta)
            moved = min(max(moved, config.entropy_coef_min), config.entropy_coef_max)
            self.state |= {"entropy_coef": moved, "entropy_bonus": moved if low else 0.0}


class GRPO(PolicyLoss[GRPOConfig]):
    """Advantages relative to a group."""

    def credit(self, rows: Rows) -> Rows:
        """Every token of an episode gets its advantage; tokens below the entropy threshold are not trained on."""
        config, episodes = self.config, rows.episodes
        if config.pass_at_k is not None:
            total = episodes.total(config.reward_weights)
            advantages = pass_at_k_advantages(total, episodes.group, config.pass_at_k, failed=episodes.failed)
        else:
            advantages = group_advantages(
                episodes.reward,
                episodes.group,
                failed=episodes.failed,
                weights=tuple(config.reward_weights.values()) if config.reward_weights else None,
                scale_rewards=config.scale_rewards,
                multi_objective_aggregation=config.multi_objective_aggregation,
                names=episodes.names or None,
            )
        credited = rows.crediting(advantages.advantage, advantages.metrics)
        return self.selected(self._by_turn(credited) if config.credit == "turn" else credited)

    def _by_turn(self, rows: Rows) -> Rows:
        """`rows` with the advantages of turns: of what is still to come, among those of the group that got so far."""
        of_episode: dict[int, list[int]] = {}
        for i, row in enumerate(rows.rows):
            of_episode.setdefault(row.trajectory, []).append(i)
        returns: list[float] = []
        labels: list[str] = []
        turns: dict[int, NDArray[np.int64]] = {}
        for n, indices in of_episode.items():
            rewards: list[float] = []
            for i in indices:
                turn, found = turns_of(rows.rows[i])
                turns[i] = len(labels) + len(rewards) + turn
                rewards += found.tolist()
            returns += discounted(np.array(rewards), self.config.discount).tolist()
            labels += [f"{rows.episodes.group[n]}/{at}" for at in range(len(rewards))]
        advantage = group_advantages(returns, labels, scale_rewards=self.config.scale_rewards).advantage
        return rows.having([{"advantage": advantage[turns[i]]} for i in range(len(rows.rows))])
