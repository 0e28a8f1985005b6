"""What guards a policy loss against data that the current policy did not sample.

Sampler correction, off-policy row mask, entropy threshold and mask, and the mask of truncated rows. All of it
is weights and masks: nothing here has a gradient, and only tokens that the mask keeps are looked at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quintain.config.loss import BY_SEQUENCE, LossOptions
from quintain.trainers.losses.inputs import LossInputs, bounded_exp


def known_to_sampler(inputs: LossInputs) -> Tensor:
    """[T] bool: masked-in tokens for which the sampler gave a log-probability."""
    if inputs.sampler_logp is None:
        return torch.zeros_like(inputs.mask)
    return inputs.mask & ~torch.isnan(inputs.sampler_logp)


def log_mismatch(inputs: LossInputs) -> Tensor:
    """[T]: log w = ℓ_old − μ, the trainer against the sampler; 0 where the sampler gave nothing.

    `inputs` as from `cleaned`. Raises ValueError without `sampler_logp`.
    """
    if inputs.sampler_logp is None:
        raise ValueError("sampler_logp: expected the sampler's log-probabilities to correct for it; got None")
    return torch.where(known_to_sampler(inputs), inputs.proximal_logp - inputs.sampler_logp, 0.0)


def correction(inputs: LossInputs, options: LossOptions) -> Tensor | None:
    """[T]: the factor of the policy term that corrects from the sampler μ to the proximal policy, or None.

    With w = exp(ℓ_old − μ) per token and bounds [lo, hi] = importance_sampling_clip_min, _max:
        tis                w clipped to the bounds (TRL's token_truncate)
        icepop             w, 0 outside the bounds (TRL's token_mask)
        sequence_truncate  the product of w over the row, clipped to the bounds (TRL's)
        sequence_mask      the product of w over the row, 0 outside the bounds (TRL's)
        geometric_mask     1 if the geometric mean of w over the row is within the bounds, else 0: the product
                           shrinks and grows with length, the mean does not
        decoupled          w itself: the clipped ratio is against π_old, the weight carries π_old/μ (decoupled PPO,
                           arXiv 2110.00641); bounded by e^20 only
    """
    mode = options.off_policy_correction
    if mode == "none":
        return None
    log_w = log_mismatch(inputs)
    low = -math.inf if options.importance_sampling_clip_min is None else options.importance_sampling_clip_min
    high = math.inf if options.importance_sampling_clip_max is None else options.importance_sampling_clip_max
    if mode in BY_SEQUENCE:
        of_row = inputs.row_mean(log_w) if mode == "geometric_mask" else inputs.row_sum(log_w)
        log_w = of_row[inputs.row]
    w = bounded_exp(log_w)
    if mode in ("tis", "sequence_truncate"):
        return w.clamp(low, high)
    if mode == "decoupled":
        return w
    kept = ((w >= low) & (w <= high)).to(w.dtype)
    return kept if mode == "geometric_mask" else w * kept


def off_policy_keep(inputs: LossInputs, threshold: float) -> Tensor:
    """[T] bool: keep where A ≥ 0 or the row's mean of (μ − ℓ) is at most `threshold` (DeepSeek-V3.2, eq. 9).

    Without μ the proximal policy stands in for it. A token the sampler could not score counts in the row's
    length with a difference of 0: it is no evidence of drift (as in TRL).
    """
    policy = inputs.logp.detach()
    if inputs.sampler_logp is not None:
        drift = torch.where(known_to_sampler(inputs), inputs.sampler_logp - policy, 0.0)
    else:
        drift = inputs.proximal_logp - policy
    row_is_near = inputs.row_mean(drift) <= threshold
    return (inputs.advantage >= 0) | row_is_near[inputs.row]


def entropy_threshold(entropies: Tensor, top_entropy_quantile: float) -> float:
    """The entropy at or above which a token is in the top share ("Beyond the 80/20 rule", arXiv 2506.01939).

    `entropies`: flat, of *all* masked-in tokens of the global batch, over micro-batches and ranks; the same
    numbers that the losses are then given, or rounding decides about ties. The (1 − q) quantile with linear
    interpolation, as `torch.quantile` but without its limit of 2^24 elements. Without any entropies:
    infinity, nothing is kept.
    """
    count = entropies.numel()
    if count == 0:
        return math.inf
    position = (1.0 - top_entropy_quantile) * (count - 1)
    if abs(position - round(position)) < 1e-9 * count:
        position = float(round(position))  # on a data point: 0.09999… must not turn a tie into an exclusion
    below = math.floor(position)
    values = entropies.detach().float()
    low = torch.kthvalue(values, below + 1).values.item()
    high = torch.kthvalue(values, min(below + 2, count)).values.item()
    return low + (high - low) * (position - below)
