"""Losses on preferences, as pure functions: pairs with a reference (DPO and kin) or without one (ORPO, CPO, SimPO),
completions with a label (KTO, BCO), and scores (reward models).

Shapes: P pairs, N labelled completions. Invariants: a loss is one value per pair or completion, and the mean over a
batch is the batch's loss, however it is cut; only the loss types in `config.preference.SORTED` look at other pairs, at
those of the same unit. A log-probability of a completion is the sum over its tokens unless it says otherwise. Values
and gradients are TRL 1.16's (BCO: 1.12's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from quintain.config.preference import CPOOptions, PairLossType, PreferenceOptions
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Draft, Kind, draft

HIGHEST_EXPONENT = 80.0
"""exp() of more is near float32's largest number; TRL's bound for alpha_divergence, here for forward_kl too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P pairs; every field is [P], those of the policy with a gradient.

    chosen, rejected: log-probabilities under the policy; ref_chosen, ref_rejected: under the reference.
    chosen_tokens, rejected_tokens: how many tokens a completion has.
    chosen_nll: the chosen completion's negative log-probability, over all its tokens whatever `ld_alpha` says.
    weight: WPO's, without a gradient, or None.
    unit: int64, which unit (`Row.unit`) the pair belongs to; None: all are of one.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    chosen_nll: Tensor
    weight: Tensor | None = None
    unit: Tensor | None = None

    @property
    def chosen_ratio(self) -> Tensor:
        """Log-ratio of policy to reference."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """Log-ratio of policy to reference."""
        return self.rejected - self.ref_rejected


def pairs_of(inputs: LossInputs, *, ld_alpha: float | None = None, log_mass: Tensor | None = None) -> Pairs:
    """The pairs of a micro-batch whose rows are chosen, rejected, chosen, rejected, ...

    Without a reference in `inputs` its log-probabilities are 0. Tokens beyond the length of a pair's shorter completion
    count `ld_alpha` times. `log_mass` [T], the log of the sum of squared probabilities at each token, gives WPO's
    weights. Raises ValueError for an odd number of rows.
    """
    if inputs.rows % 2:
        raise ValueError(f"rows: expected pairs of a chosen and a rejected one, got {inputs.rows}")
    tokens = inputs.row_tokens()
    sums = inputs.row_sum(inputs.logp)
    if ld_alpha is None:
        weighted, ref = sums, _reference(inputs, None)
    else:
        shared = tokens.view(-1, 2).amin(1).repeat_interleave(2)
        factor = torch.where(_place_in_row(inputs) < shared[inputs.row], 1.0, ld_alpha)
        weighted, ref = inputs.row_sum(inputs.logp * factor), _reference(inputs, factor)
    weight = None
    if log_mass is not None:
        likeliness = inputs.row_mean((inputs.logp - log_mass).detach()).exp()
        weight = likeliness[0::2] * likeliness[1::2]
    unit = None
    if inputs.unit is not None:
        unit = inputs.unit.new_zeros(inputs.rows).scatter(0, inputs.row, inputs.unit)[0::2]
    return Pairs(
        chosen=weighted[0::2],
        rejected=weighted[1::2],
        ref_chosen=ref[0::2],
        ref_rejected=ref[1::2],
        chosen_tokens=tokens[0::2],
        rejected_tokens=tokens[1::2],
        chosen_nll=-sums[0::2],
        weight=weight,
        unit=unit,
    )


def _reference(inputs: LossInputs, factor: Tensor | None) -> Tensor:
    """[R]: the reference's log-probabilities, 0 without one."""
    if inputs.ref_logp is None:
        return inputs.logp.new_zeros(inputs.rows)
    values = inputs.ref_logp.to(inputs.logp.dtype)
    return inputs.row_sum(values if factor is None else values * factor)


def _place_in_row(inputs: LossInputs) -> Tensor:
    """[T]: how many masked-in tokens of its row come before a token."""
    order = torch.argsort(inputs.row, stable=True)
    kept = inputs.mask[order].long()
    before = kept.cumsum(0) - kept
    per_row = torch.zeros(inputs.rows, dtype=torch.int64, device=kept.device).index_add(0, inputs.row[order], kept)
    before = before - (per_row.cumsum(0) - per_row)[inputs.row[order]]
    return torch.empty_like(before).index_copy(0, order, before)


def pair_losses(pairs: Pairs, options: PreferenceOptions, *, mean_chosen_tokens: float) -> Tensor:
    """[P]: the weighted sum of the losses that `options` names, of each pair.

    `mean_chosen_tokens`: tokens per chosen completion over the whole batch, which `sft` divides by.
    """
    c, r = (_score(ratio, options) for ratio in (pairs.chosen_ratio, pairs.rejected_ratio))
    case = _Case(pairs, options, c, r, mean_chosen_tokens)
    weights = options.loss_weights or [1.0] * len(options.loss_type)
    total = torch.stack([w * PAIR_LOSSES[kind](case) for kind, w in zip(options.loss_type, weights, strict=True)]).sum(
        0
    )
    return total if pairs.weight is None else total * pairs.weight


def pair_metrics(pairs: Pairs, beta: float) -> dict[str, Draft]:
    """Rewards β · (log-ratio) and log-probabilities, under TRL's names."""
    return pair_metrics_of(pairs.chosen, pairs.rejected, beta * pairs.chosen_ratio, beta * pairs.rejected_ratio)


def pair_metrics_of(chosen: Tensor, rejected: Tensor, won: Tensor, lost: Tensor) -> dict[str, Draft]:
    """Log-probabilities and rewards [P] of pairs, under TRL's names."""
    every = torch.ones_like(chosen, dtype=torch.bool)
    values = {
        "rewards/chosen": won,
        "rewards/rejected": lost,
        "rewards/accuracies": won > lost,
        "rewards/margins": won - lost,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    return {name: draft(Kind.MEAN, value, every) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Case:
    """What a pair loss sees: `c` and `r` are the f-divergence's scores of the two log-ratios."""

    pairs: Pairs
    options: PreferenceOptions
    c: Tensor
    r: Tensor
    mean_chosen_tokens: float

    @property
    def logits(self) -> Tensor:
        """β · (c − r)."""
        return self.options.beta * (self.c - self.r)

    @property
    def rewards(self) -> tuple[Tensor, Tensor]:
        """β times the log-ratios themselves."""
        return self.options.beta * self.pairs.chosen_ratio, self.options.beta * self.pairs.rejected_ratio

    @property
    def per_token(self) -> Tensor:
        """c per token − r per token."""
        return self.c / self.pairs.chosen_tokens.clamp(min=1) - self.r / self.pairs.rejected_tokens.clamp(min=1)

    def ordered(self, values: Tensor) -> Tensor:
        """`values` [P], those of each unit in ascending order."""
        order = values.argsort()
        if self.pairs.unit is not None:
            order = order[self.pairs.unit[order].argsort(stable=True)]
        return values[order]

    def smoothed(self, logits: Tensor) -> Tensor:
        """The logistic loss with smoothed labels."""
        return smoothed_logistic(logits, self.options.label_smoothing)


def smoothed_logistic(logits: Tensor, smoothing: float) -> Tensor:
    """−(1 − s)·log σ(x) − s·log σ(−x)."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def _score(ratio: Tensor, options: PreferenceOptions) -> Tensor:
    """f'(t) at t = exp(ratio), without constants (f-DPO, arXiv 2309.16240)."""
    power = options.f_alpha_divergence_coef - 1.0
    if options.f_divergence_type == "forward_kl":
        return 1 - torch.exp((-ratio).clamp(max=HIGHEST_EXPONENT))
    if options.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(ratio)
    if options.f_divergence_type == "alpha_divergence" and abs(power) >= 1e-6:
        return (torch.exp((power * ratio).clamp(max=HIGHEST_EXPONENT)) - 1) / power
    return ratio


def _exo_pair(x: _Case) -> Tensor:
    s, logits = x.options.label_smoothing, x.logits
    won, lost = logsigmoid(logits), logsigmoid(-logits)
    return won.exp() * (won - math.log1p(-s)) + lost.exp() * (lost - math.log(s))


def _nca_pair(x: _Case) -> Tensor:
    chosen, rejected = x.rewards
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _robust(x: _Case) -> Tensor:
    s = x.options.label_smoothing
    return (-(1 - s) * logsigmoid(x.logits) + s * logsigmoid(-x.logits)) / (1 - 2 * s)


def _bco_pair(x: _Case) -> Tensor:
    chosen, rejected = x.rewards
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def _sppo_hard(x: _Case) -> Tensor:
    half = 0.5 / x.options.beta
    return (x.pairs.chosen_ratio - half) ** 2 + (x.pairs.rejected_ratio + half) ** 2


def _aot(x: _Case) -> Tensor:
    p = x.pairs
    policy, reference = x.ordered(p.chosen - p.rejected), x.ordered(p.ref_chosen - p.ref_rejected)
    return x.smoothed(x.options.beta * (policy - reference))


def _aot_unpaired(x: _Case) -> Tensor:
    delta = x.ordered(x.pairs.chosen_ratio) - x.ordered(x.pairs.rejected_ratio)
    return x.smoothed(x.options.beta * delta)


def _apo_zero(x: _Case) -> Tensor:
    chosen, rejected = x.rewards
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(x: _Case) -> Tensor:
    chosen, rejected = x.rewards
    return torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)


def _discopop(x: _Case) -> Tensor:
    logits = x.logits
    gate = torch.sigmoid(logits / x.options.discopop_tau)
    return -logsigmoid(logits) * (1 - gate) + torch.exp((-logits).clamp(max=HIGHEST_EXPONENT)) * gate


PAIR_LOSSES: Final[Mapping[PairLossType, Callable[[_Case], Tensor]]] = MappingProxyType(
    {
        "sigmoid": lambda x: -logsigmoid(x.logits),  # DPO, arXiv 2305.18290
        "hinge": lambda x: torch.relu(1 - x.logits),  # SLiC, arXiv 2305.10425
        "ipo": lambda x: (x.per_token - 0.5 / x.options.beta) ** 2,  # arXiv 2310.12036, eq. 17, per token
        "exo_pair": _exo_pair,  # arXiv 2402.00856, eq. 16
        "nca_pair": _nca_pair,  # arXiv 2402.05369
        "robust": _robust,  # arXiv 2403.00409
        "bco_pair": _bco_pair,  # arXiv 2404.04656
        "sppo_hard": _sppo_hard,  # arXiv 2405.00675, eq. 4.7, with the winner's probability 1
        "aot": _aot,  # arXiv 2406.05882
        "aot_unpaired": _aot_unpaired,  # the same
        "apo_zero": _apo_zero,  # arXiv 2408.06266, eq. 7
        "apo_down": _apo_down,  # the same, eq. 8
        "discopop": _discopop,  # arXiv 2406.08414, eq. 5
        "sft": lambda x: x.pairs.chosen_nll / x.mean_chosen_tokens,
        "sigmoid_norm": lambda x: -logsigmoid(x.options.beta * x.per_token),
    }
)


def odds_ratio_losses(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """([P] −β·log σ(log odds ratio), [P] the log odds ratio): ORPO's part beside the likelihood (arXiv 2403.07691).

    `chosen`, `rejected`: log-probabilities per token.
    """
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return -beta * logsigmoid(log_odds), log_odds


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0; x is held below float32's last step before 0."""
    x = x.clamp(max=-torch.finfo(torch.float32).eps)
    near = x > -math.log(2)
    # `where` inside too: the branch not taken must not turn the gradient into NaN.
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def cpo_losses(chosen: Tensor, rejected: Tensor, options: CPOOptions) -> tuple[Tensor, Tensor, Tensor]:
    """([P] losses, [P] rewards of the chosen, [P] of the rejected): CPO (arXiv 2401.08417), SimPO (2405.14734).

    `chosen`, `rejected`: log-probabilities, per token for simpo and ipo. The likelihood term is not in it.
    """
    chosen, rejected = (_alpha_reward(x, options.alpha) for x in (chosen, rejected))
    logits = chosen - rejected
    beta = options.beta
    if options.loss_type == "hinge":
        losses = torch.relu(1 - beta * logits)
    elif options.loss_type == "ipo":
        losses = (logits - 0.5 / beta) ** 2
    else:
        margin = options.simpo_gamma if options.loss_type == "simpo" else 0.0
        losses = smoothed_logistic(beta * logits - margin, options.label_smoothing)
    return losses, beta * chosen.detach(), beta * rejected.detach()


def _alpha_reward(logp: Tensor, alpha: float) -> Tensor:
    """AlphaPO's (1 − p^−α) / α (arXiv 2501.03884), log p at α = 0."""
    return logp if alpha == 0 else -torch.expm1(-alpha * logp) / alpha


def kto_losses(ratio: Tensor, desirable: Tensor, beta: float, kl: Tensor | float | None) -> Tensor:
    """[N]: KTO (arXiv 2402.01306, eq. 7) of log-ratios `ratio` [N] and labels `desirable` [N] bool, without weights.

    `kl`: the batch's estimate of KL(policy ‖ reference), at least 0; None is apo_zero_unpaired, which has none.
    """
    reward = beta * (ratio - (0.0 if kl is None else kl))
    return torch.where(desirable, 1 - torch.sigmoid(reward), torch.sigmoid(reward))


def bco_losses(ratio: Tensor, desirable: Tensor, beta: float, delta: Tensor | float) -> Tensor:
    """[N]: BCO (arXiv 2404.04656) of log-ratios and labels; `delta` is the mean of all rewards so far."""
    reward = beta * ratio - delta
    return -logsigmoid(torch.where(desirable, reward, -reward))


def reward_losses(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, center_rewards_coefficient: float | None = None
) -> Tensor:
    """[P]: Bradley-Terry on scores, −log σ(r_c − r_r − margin), plus coefficient · (r_c + r_r)² (arXiv 2312.09244)."""
    difference = chosen - rejected
    losses = -logsigmoid(difference if margin is None else difference - margin)
    return losses if not center_rewards_coefficient else losses + center_rewards_coefficient * (chosen + rejected) ** 2
