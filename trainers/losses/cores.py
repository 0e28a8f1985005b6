"""The cores of the policy-gradient losses: from ratios and advantages to one value per token.

Invariants: a core is a pure function of cleaned inputs; it knows neither masks, corrections and KL, which
`policy.policy_loss` puts around it, nor how its values are reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quintain.config.loss import LossOptions
from quintain.trainers.losses.inputs import LOG_BOUND, LossInputs, bounded_exp
from quintain.trainers.losses.metrics import Draft, Kind, draft

VESPO_LOG_FLOOR = math.log(1e-8)
"""VESPO's lower bound of every log weight, from the authors' implementation (through TRL)."""


@dataclass(frozen=True, slots=True)
class CoreInputs:
    """What a core sees: cleaned inputs, and per token the log-ratio ℓ − ℓ_old and the importance ratio ρ.

    ρ is exp(ℓ − ℓ_old), or one value per row at importance_sampling_level sequence, repeated for its tokens.
    `correction` is the sampler correction, for the core that folds it into its own weight.
    """

    tokens: LossInputs
    options: LossOptions
    log_ratio: Tensor
    ratio: Tensor
    correction: Tensor | None

    def mean(self, values: Tensor) -> Draft:
        """A mean over tokens; for values that are one per row, over the rows that have any token."""
        if self.options.importance_sampling_level == "sequence":
            return row_draft(self.tokens, Kind.MEAN, values)
        return draft(Kind.MEAN, values, self.tokens.mask)


Core = Callable[[CoreInputs], tuple[Tensor, dict[str, Draft]]]


def row_draft(tokens: LossInputs, kind: Kind, values: Tensor) -> Draft:
    """A metric over each row's mean of `values` [T], of the rows that have any token."""
    return draft(kind, tokens.row_mean(values), tokens.row_tokens() > 0)


def clipped_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−min(min(ρ, δ)·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A): PPO (arXiv 1707.06347), δ of INTELLECT-2."""
    low, high = 1 - x.options.epsilon, 1 + x.options.clip_high
    advantage = x.tokens.advantage
    clipped = x.ratio.clamp(low, high)
    ratio = x.ratio if x.options.delta is None else x.ratio.clamp(max=x.options.delta)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    is_low = ((ratio < low) & (advantage < 0)).to(loss.dtype)
    is_high = ((ratio > high) & (advantage > 0)).to(loss.dtype)
    return loss, {
        "clip_ratio/low_mean": x.mean(is_low),
        "clip_ratio/low_min": row_draft(x.tokens, Kind.MIN, is_low),
        "clip_ratio/high_mean": x.mean(is_high),
        "clip_ratio/high_max": row_draft(x.tokens, Kind.MAX, is_high),
        "clip_ratio/region_mean": x.mean(is_low + is_high),
    }


def cispo_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−sg[min(ρ, ε_high)]·A·ℓ (MiniMax-M1, arXiv 2506.13585); the bound is absolute."""
    bound = x.options.clip_high
    advantage = x.tokens.advantage
    loss = -x.ratio.detach().clamp(max=bound) * advantage * x.tokens.logp
    is_clipped = ((x.ratio > bound) & (advantage > 0)).to(loss.dtype)
    return loss, {"cispo_clip_ratio": x.mean(is_clipped)}


def gmpo_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−exp(mean of the row's clipped log-ratios)·A (arXiv 2507.20673): bounds −ε_low and ε_high of log ρ, one-sided."""
    low, high = -x.options.epsilon, x.options.clip_high
    advantage, clipped = x.tokens.advantage, x.log_ratio.clamp(low, high)
    one_sided = torch.where(advantage > 0, torch.minimum(x.log_ratio, clipped), torch.maximum(x.log_ratio, clipped))
    loss = -bounded_exp(x.tokens.row_mean(one_sided))[x.tokens.row] * advantage
    is_low = ((x.log_ratio < low) & (advantage < 0)).to(loss.dtype)
    is_high = ((x.log_ratio > high) & (advantage > 0)).to(loss.dtype)
    return loss, {
        "clip_ratio/low_mean": draft(Kind.MEAN, is_low, x.tokens.mask),
        "clip_ratio/high_mean": draft(Kind.MEAN, is_high, x.tokens.mask),
        "clip_ratio/region_mean": draft(Kind.MEAN, is_low + is_high, x.tokens.mask),
    }


def dppo_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−M·ρ·A (arXiv 2602.04879): M is 0 where the step leads further away from the sampler μ than the threshold allows.

    How far is the divergence of the two-valued distributions (this token, any other): |π − μ|, or KL(μ ‖ π).
    """
    tokens, advantage = x.tokens, x.tokens.advantage
    sampler = tokens.proximal_logp
    if tokens.sampler_logp is not None:
        sampler = torch.where(torch.isnan(tokens.sampler_logp), sampler, tokens.sampler_logp)
    policy, sampled = tokens.logp.detach().exp(), sampler.exp()
    if x.options.loss_type == "dppo_tv":
        apart = (policy - sampled).abs()
    else:
        rest, rest_sampled = (1 - p.clamp(max=1 - 1e-6) for p in (policy, sampled))
        apart = sampled * (sampler - tokens.logp.detach()) + rest_sampled * (rest_sampled.log() - rest.log())
    away = torch.where(advantage > 0, x.ratio > 1, x.ratio < 1)
    dropped = (apart > x.options.dppo_threshold) & away
    loss = -x.ratio * advantage * ~dropped
    return loss, {"dppo/dropped_mean": draft(Kind.MEAN, dropped, tokens.mask)}


def sapo_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−4σ(τ(ρ − 1))/τ·A (arXiv 2511.20347); τ depends on the sign of A."""
    advantage = x.tokens.advantage
    positive = torch.full_like(advantage, x.options.sapo_temperature_pos)
    tau = torch.where(advantage > 0, positive, x.options.sapo_temperature_neg)
    return -4 * torch.sigmoid(tau * (x.ratio - 1)) / tau * advantage, {}


def vespo_core(x: CoreInputs) -> tuple[Tensor, dict[str, Draft]]:
    """−sg[φ(w)]·A·ℓ with φ(w) = exp(λ + k·log w − λ·w), φ(1) = 1 (arXiv 2602.10693).

    w is the product over the row of the token ratios and, if any, of the token-level sampler corrections.
    Token log ratios are held in [−20, 20], log corrections and log w in [log 1e-8, 20], as in TRL.
    """
    options, tokens = x.options, x.tokens
    log_w = x.log_ratio.detach().clamp(-LOG_BOUND, LOG_BOUND)
    if x.correction is not None:
        log_w = log_w + torch.log(x.correction).clamp(VESPO_LOG_FLOOR, LOG_BOUND)
    log_w = tokens.row_sum(log_w).clamp(VESPO_LOG_FLOOR, LOG_BOUND)[tokens.row]

    def by_sign(nonnegative: float, negative: float) -> Tensor:
        return torch.where(tokens.advantage >= 0, torch.full_like(log_w, nonnegative), negative)

    decay = by_sign(options.vespo_lambda_pos, options.vespo_lambda_neg).clamp(min=1e-4)
    power = by_sign(options.vespo_k_pos, options.vespo_k_neg)
    phi = bounded_exp(decay + power * log_w - decay * torch.exp(log_w))
    return -phi * tokens.advantage * tokens.logp, {"vespo/phi_seq_mean": row_draft(tokens, Kind.MEAN, phi)}
