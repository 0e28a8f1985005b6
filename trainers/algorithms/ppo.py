"""PPO (arXiv 1707.06347) with a critic: what came after a token is compared with what was expected before it.

A turn's reward stands at its last sampled token, the KL to the reference at every token; advantages are generalised
(GAE) over the policy's tokens of an episode, over forks and over what the environment wrote in between. An episode
that a limit ended goes on in the critic's eyes: what it expects after the last token is added there. The critic is a
model of its own, or a head on the policy's trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from quintain.config import PPOConfig
from quintain.config.loss import LossOptions
from quintain.config.ppo import CRITIC
from quintain.failure import QuintainError
from quintain.trainers.algorithms.base import NEXT_VALUE, EpisodeAlgorithm, Pass
from quintain.trainers.estimators import Floats, explained_variance, gae, group_advantages, whitened
from quintain.trainers.losses.inputs import LOG_BOUND, LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.policy import policy_loss, reduce
from quintain.trainers.rows import Row, Rows, Totals, credited, episode_spans, per_row
from quintain.trajectory import Ending, Group

KL_STEP = 0.2
"""Largest relative error of the KL that its weight follows (arXiv 1909.08593, 2.2)."""


class PPO(EpisodeAlgorithm[PPOConfig]):
    """Advantages over a critic's values.

    `state` is what it remembers from batch to batch: the weight of the KL.
    """

    def __init__(self, config: PPOConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.trains = ("policy",) if config.value_head else ("policy", CRITIC)
        self.passes = frozenset({Pass.VALUE, *((Pass.OLD, Pass.REF) if config.needs_reference else ())})
        self.state = {"kl_coef": config.kl_coef}
        self._loss = LossOptions(loss_type="dapo", epsilon=config.cliprange)

    def rows(self, data: Sequence[Group], *, version: int) -> Rows:
        """A row for each segment, which says whether a limit ended its episode."""
        rows = super().rows(data, version=version)
        cut = [float(each.ending is Ending.TRUNCATED) for _, each in credited(data)]
        return rows.having([{"truncated": cut[row.trajectory]} for row in rows.rows])

    def credit(self, rows: Rows) -> Rows:
        """Every token gets its advantage, whitened over the batch, and its return, which the critic learns."""
        config, episodes = self.config, rows.episodes
        logged = self._rewarded(rows)
        if not rows.rows:
            return rows.having([], logged)
        known = _flat(rows.rows)
        _check_values(known)
        value, kl = known["value"], _kl(known, config.kl_estimator)
        reward = known["reward"] if config.reward_weights is None else np.zeros_like(value)
        total = episodes.total(config.reward_weights)
        spans = episode_spans(rows.rows)
        for episode, span in spans.items():  # what no turn was given comes at the end
            reward[span.stop - 1] += total[episode] - reward[span].sum()
        reward -= self.state["kl_coef"] * kl
        if config.whiten_rewards:
            reward = whitened(reward) + reward.mean()
        advantage = np.empty_like(value)
        for span in spans.values():
            last = span.stop - 1
            after = float(known["truncated"][last] * known[NEXT_VALUE][last])
            advantage[span] = gae(reward[span], value[span], after, gamma=config.gamma, lam=config.lam)
        returns = advantage + value
        logged |= {
            "critic/explained_variance": explained_variance(value, returns),
            "critic/value_largest": float(np.abs(value).max()),
            "critic/reward_largest": float(np.abs(total[~episodes.failed]).max()),
        }
        if config.needs_reference:
            summed = float(kl.sum() / len(spans))
            logged |= {"kl": float(kl.mean()), "objective/kl": summed, "kl_coef": self.state["kl_coef"]}
        columns = zip(*(per_row(x.astype(np.float32), rows.rows) for x in (whitened(advantage), returns)), strict=True)
        return rows.having([{"advantage": of_policy, "return": of_critic} for of_policy, of_critic in columns], logged)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The clipped policy loss or the clipped value loss, a mean over the batch's tokens; of one trunk, both."""
        if model == CRITIC:
            return self._value_loss(inputs, totals)
        per_token = policy_loss(inputs, self._loss)
        moved = 0.5 * (inputs.logp.detach() - inputs.proximal_logp).square()
        metrics = {**per_token.metrics, **fetched({"policy/approxkl_avg": draft(Kind.MEAN, moved, inputs.mask)})}
        loss = reduce(per_token, inputs, self._loss.loss_type, totals)
        if self.config.value_head:
            of_critic, its = self._value_loss(inputs, totals)
            loss = loss + self.config.vf_coef * of_critic
            metrics |= {f"{CRITIC}/{name}": metric for name, metric in its.items()}
        return loss, metrics

    def remember(self, figures: Mapping[str, float]) -> None:
        """Let the weight of the KL follow what a step's KL was: e-fold by up to `KL_STEP` in `kl_horizon` episodes."""
        config = self.config
        if config.kl_target is not None and "objective/kl" in figures:
            error = np.clip(figures["objective/kl"] / config.kl_target - 1, -KL_STEP, KL_STEP)
            episodes = config.prompts_per_step * config.num_generations
            self.state["kl_coef"] *= float(1 + error * episodes / config.kl_horizon)

    def _value_loss(self, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """½·max((V − R)², (clip(V, V_old ± ε) − R)²)."""
        assert inputs.value is not None
        value, old, target = inputs.value, inputs.columns["value"], inputs.columns["return"]
        near = torch.clamp(value, old - self.config.cliprange_value, old + self.config.cliprange_value)
        plain, clipped = (value - target).square(), (near - target).square()
        metrics = {
            "clip_ratio": draft(Kind.MEAN, (clipped > plain).to(value.dtype), inputs.mask),
            "value_mean": draft(Kind.MEAN, value, inputs.mask),
            "error_mean": draft(Kind.MEAN, (value - target).abs(), inputs.mask),
        }
        loss = 0.5 * torch.where(inputs.mask, torch.maximum(plain, clipped), 0.0).sum() / max(totals.tokens, 1)
        return loss, fetched(metrics)

    def _rewarded(self, rows: Rows) -> dict[str, float]:
        """The figures of the batch's rewards."""
        episodes, weights = rows.episodes, self.config.reward_weights
        return group_advantages(
            episodes.reward,
            np.zeros_like(episodes.group),  # the batch is what an episode is compared with
            failed=episodes.failed,
            weights=tuple(weights.values()) if weights else None,
            scale_rewards="none",
            names=episodes.names or None,
        ).metrics


def _flat(rows: Sequence[Row]) -> dict[str, Floats]:
    """The columns of all rows, and the turns' rewards, one row after the other, [T] float64."""
    columns = [{**row.columns, "reward": row.segment.rewards[row.segment.mask]} for row in rows]
    return {name: np.concatenate([each[name] for each in columns]).astype(np.float64) for name in columns[0]}


def _check_values(known: Mapping[str, Floats]) -> None:
    """QuintainError where the critic gave what is no number."""
    broken = int((~np.isfinite([known["value"], known[NEXT_VALUE]])).any(0).sum())
    if broken:
        raise QuintainError(
            f"critic: its values of {broken} of {len(known['value'])} tokens are not finite, so there is nothing to"
            " compare rewards with: check the weights in trainer.critic, or lower trainer.critic_learning_rate and go"
            " on with --resume"
        )


def _kl(known: Mapping[str, Floats], estimator: str) -> Floats:
    """[T]: the estimate of KL(policy ‖ reference) at each token; 0 without a reference."""
    if "ref" not in known:
        return np.zeros_like(known["value"])
    difference = np.minimum(known["ref"] - known["old"], LOG_BOUND)
    return -difference if estimator == "k1" else np.exp(difference) - 1 - difference
