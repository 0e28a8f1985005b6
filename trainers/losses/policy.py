"""A policy loss is a core and a reduction; one table says which, and `policy_loss` and `reduce` apply them.

Invariants: what `policy_loss` returns is 0 at every token the mask leaves out; only `reduce` sums over
tokens. The order of the parts is TRL 1.16's: core, off-policy mask, entropy mask, sampler correction, then +
β·KL, which neither masks nor corrections touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar

import torch
from torch import Tensor

from quintain.config.loss import BY_SEQUENCE, LossOptions, LossType
from quintain.trainers.losses import offpolicy
from quintain.trainers.losses.cores import (
    Core,
    CoreInputs,
    cispo_core,
    clipped_core,
    dppo_core,
    gmpo_core,
    row_draft,
    sapo_core,
    vespo_core,
)
from quintain.trainers.losses.inputs import LOG_BOUND, LossInputs, bounded_exp, cleaned
from quintain.trainers.losses.metrics import Draft, Kind, Metrics, draft, fetched
from quintain.trainers.losses.reduction import (
    Reduction,
    local_token_mean,
    row_mean_of_means,
    row_mean_of_sums,
    sum_over_longest,
    sum_over_tokens,
)
from quintain.trainers.rows import Totals

Needed = TypeVar("Needed", Tensor, float)


@dataclass(frozen=True, slots=True)
class PerToken:
    """`loss` [T]: 0 at tokens that the mask leaves out. `metrics`: sums, see `metrics.combine`."""

    loss: Tensor
    metrics: Metrics


LOSSES: Final[Mapping[LossType, tuple[Core, Reduction]]] = MappingProxyType(
    {
        "grpo": (clipped_core, row_mean_of_means),
        "bnpo": (clipped_core, local_token_mean),
        "dr_grpo": (clipped_core, sum_over_longest),
        "dapo": (clipped_core, sum_over_tokens),
        "luspo": (clipped_core, row_mean_of_sums),
        "cispo": (cispo_core, sum_over_tokens),
        "sapo": (sapo_core, row_mean_of_means),
        "vespo": (vespo_core, sum_over_tokens),
        "gmpo": (gmpo_core, row_mean_of_means),
        "dppo_tv": (dppo_core, sum_over_tokens),
        "dppo_kl": (dppo_core, sum_over_tokens),
    }
)


def policy_loss(inputs: LossInputs, options: LossOptions, *, entropy_threshold: float | None = None) -> PerToken:
    """The loss of every policy token, [T], before reduction, and the metrics of the micro-batch.

    `entropy_threshold`: from `offpolicy.entropy_threshold` over the global batch; needed when
    `top_entropy_quantile` < 1. Raises ValueError when an option needs a tensor that `inputs` does not have.
    """
    tokens = cleaned(inputs)
    log_ratio = tokens.logp - tokens.proximal_logp
    if options.importance_sampling_level == "sequence":
        ratio = bounded_exp(tokens.row_mean(log_ratio))[tokens.row]
    else:
        ratio = bounded_exp(log_ratio)
    factor = offpolicy.correction(tokens, options)
    core, _ = LOSSES[options.loss_type]
    loss, drafts = core(CoreInputs(tokens, options, log_ratio, ratio, factor))

    if options.off_policy_mask_threshold is not None:
        keep = offpolicy.off_policy_keep(tokens, options.off_policy_mask_threshold)
        loss = loss * keep
        drafts["off_policy_mask/dropped_mean"] = draft(Kind.MEAN, ~keep, tokens.mask)
    if options.top_entropy_quantile < 1.0:
        why = f"top_entropy_quantile is {options.top_entropy_quantile}"
        entropy = _needed(tokens.entropy, "entropy", why)
        loss = loss * (entropy >= _needed(entropy_threshold, "entropy_threshold", why))
    if options.covariance != "none":
        covariant = _needed(tokens.columns.get("covariant"), "covariant", f"covariance is {options.covariance}") > 0
        if options.covariance == "clip":
            loss = torch.where(covariant, loss.detach(), loss)
        else:
            loss = loss + options.covariance_kl_coef * torch.where(covariant, log_ratio.abs(), 0.0)
    if factor is not None and options.loss_type != "vespo":  # vespo's core has folded it into φ
        loss = loss * factor
    if options.beta > 0.0:
        kl = _k3(tokens.logp, _needed(tokens.ref_logp, "ref_logp", f"beta is {options.beta}"))
        if options.use_bias_correction_kl:
            kl = kl * ratio
        loss = loss + options.beta * kl
        drafts["kl"] = draft(Kind.MEAN, kl, tokens.mask)

    drafts |= always_logged(tokens, log_ratio, factor, per_row=options.off_policy_correction in BY_SEQUENCE)
    return PerToken(torch.where(tokens.mask, loss, 0.0), fetched(drafts))


def reduce(per_token: PerToken, inputs: LossInputs, loss_type: LossType, totals: Totals) -> Tensor:
    """The micro-batch's part of the batch loss, a scalar with a gradient; the parts add up (`reduction`)."""
    _, reduction = LOSSES[loss_type]
    return reduction(per_token.loss, inputs, totals)


def entropy_bonus(inputs: LossInputs, totals: Totals) -> Tensor:
    """The micro-batch's part of the mean entropy of the batch's tokens, whatever the loss type."""
    entropy = _needed(inputs.entropy, "entropy", "entropy is rewarded")
    return torch.where(inputs.mask, entropy, 0.0).sum() / max(totals.tokens, 1)


def _k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """[T]: e^(ref − ℓ) − (ref − ℓ) − 1, Schulman's k3 estimate of KL(policy ‖ reference); never negative."""
    # Bounded as a whole: bounding the exponential alone would turn the gradient's sign beyond the bound.
    difference = (ref_logp - logp).clamp(max=LOG_BOUND)
    return torch.exp(difference) - difference - 1


def always_logged(tokens: LossInputs, log_ratio: Tensor, factor: Tensor | None, *, per_row: bool) -> dict[str, Draft]:
    """Entropy, how far the sampler is from the trainer, and how many samples the weights leave."""
    drafts: dict[str, Draft] = {}
    if tokens.entropy is not None:
        drafts["entropy"] = draft(Kind.MEAN, tokens.entropy, tokens.mask)
    log_weight, known = log_ratio.detach(), tokens.mask
    if tokens.sampler_logp is not None:
        known = offpolicy.known_to_sampler(tokens)
        mismatch = offpolicy.log_mismatch(tokens)
        log_weight = log_weight + mismatch
        drafts["sampling/sampling_logp_difference/mean"] = draft(Kind.MEAN, mismatch.abs(), known)
        drafts["sampling/sampling_logp_difference/max"] = draft(Kind.MAX, mismatch.abs(), known)
    drafts["sampling/effective_sample_size"] = draft(Kind.ESS, bounded_exp(log_weight), known)
    if factor is not None:
        for kind in (Kind.MIN, Kind.MEAN, Kind.MAX):
            summary = row_draft(tokens, kind, factor) if per_row else draft(kind, factor, tokens.mask)
            drafts[f"sampling/importance_sampling_ratio/{kind}"] = summary
    return drafts


def _needed(value: Needed | None, field: str, why: str) -> Needed:
    if value is None:
        raise ValueError(f"{field}: expected a value ({why}); got None")
    return value
