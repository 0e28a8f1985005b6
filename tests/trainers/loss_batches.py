"""Random batches for the loss tests, padded for TRL and flat for quintain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quintain.config.loss import LossOptions
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metric, combine
from quintain.trainers.losses.offpolicy import entropy_threshold
from quintain.trainers.losses.policy import policy_loss, reduce
from quintain.trainers.rows import Totals

ROWS, LONGEST = 6, 7


@dataclass(frozen=True)
class Batch:
    """Right-padded: B completions of up to L tokens. `tool_mask` is 0 on tokens the environment wrote."""

    logp: Tensor  # [B, L]
    old_logp: Tensor | None  # [B, L]
    sampler_logp: Tensor | None  # [B, L], float32 values
    ref_logp: Tensor  # [B, L]
    entropy: Tensor  # [B, L], float32 values
    lengths: Sequence[int]
    truncated: Sequence[bool]  # the last token is not the end of the text
    tool_mask: Tensor  # [B, L]
    rewards: Tensor  # [B, K]
    group_size: int


def make_batch(
    seed: int, *, drift: float = 0.3, sampler: bool = False, truncated: bool = False, on_policy: bool = False
) -> Batch:
    """6 completions of 1 to 7 tokens, some by the environment; `drift` is the spread of log-ratios."""
    g = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return torch.randn(ROWS, LONGEST, generator=g, dtype=torch.float64) * scale

    logp = -noise(1.0).abs()
    old = logp + noise(drift)
    tool_mask = (torch.rand(ROWS, LONGEST, generator=g) < 0.8).long()
    tool_mask[:, 0] = 1
    lengths = torch.randint(1, LONGEST + 1, (ROWS,), generator=g).tolist()
    lengths[0] = LONGEST  # TRL pads to the longest
    return Batch(
        logp=logp,
        old_logp=None if on_policy else old,
        sampler_logp=(old + noise(drift)).float() if sampler else None,
        ref_logp=logp + noise(0.5),
        entropy=noise(1.0).abs().float(),
        lengths=lengths,
        truncated=(torch.rand(ROWS, generator=g) < 0.3).tolist() if truncated else [False] * ROWS,
        tool_mask=tool_mask,
        rewards=torch.rand(ROWS, 1, generator=g, dtype=torch.float64),
        group_size=3,
    )


def random_advantages(seed: int) -> Tensor:
    """[B]: positive, negative and zero."""
    g = torch.Generator().manual_seed(seed + 1000)
    values = torch.randn(ROWS, generator=g, dtype=torch.float64)
    values[2] = 0.0
    return values


def flat(batch: Batch, advantages: Tensor, options: LossOptions, dtype: torch.dtype = torch.float64) -> LossInputs:
    """The whole padded batch as flat tensors: padding is what the mask leaves out."""
    row = torch.arange(ROWS).repeat_interleave(LONGEST)
    inside = torch.arange(LONGEST)[None] < torch.tensor(batch.lengths)[:, None]
    mask = (inside & batch.tool_mask.bool()).flatten()
    if options.mask_truncated_completions:
        mask = mask & ~torch.tensor(batch.truncated)[row]

    def column(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.flatten().to(dtype)

    return LossInputs(
        logp=batch.logp.flatten().to(dtype).requires_grad_(),
        row=row,
        rows=ROWS,
        advantage=advantages[row].to(dtype),
        mask=mask,
        old_logp=column(batch.old_logp),
        sampler_logp=column(batch.sampler_logp),
        ref_logp=column(batch.ref_logp),
        entropy=column(batch.entropy),
    )


def select(inputs: LossInputs, tokens: Tensor, rows: list[int]) -> LossInputs:
    """The micro-batch of these rows and tokens (indices into T), its rows numbered from 0."""
    number = torch.full((inputs.rows,), -1)
    number[rows] = torch.arange(len(rows))

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[tokens]

    return replace(
        inputs,
        logp=inputs.logp[tokens],
        row=number[inputs.row[tokens]],
        rows=len(rows),
        advantage=inputs.advantage[tokens],
        mask=inputs.mask[tokens],
        old_logp=take(inputs.old_logp),
        sampler_logp=take(inputs.sampler_logp),
        ref_logp=take(inputs.ref_logp),
        entropy=take(inputs.entropy),
        columns={name: values[tokens] for name, values in inputs.columns.items()},
    )


def rows_of(inputs: LossInputs, rows: list[int]) -> LossInputs:
    """The micro-batch of these rows, all their tokens."""
    return select(inputs, torch.isin(inputs.row, torch.tensor(rows, dtype=torch.int64)).nonzero()[:, 0], rows)


def totals(inputs: LossInputs) -> Totals:
    """The counts of a batch that is all there is."""
    return Totals(rows=inputs.rows, tokens=int(inputs.mask.sum()), max_completion_length=LONGEST)


def threshold_of(inputs: LossInputs, options: LossOptions) -> float | None:
    if options.top_entropy_quantile == 1.0 or inputs.entropy is None:
        return None
    return entropy_threshold(inputs.entropy[inputs.mask], options.top_entropy_quantile)


def run(whole: LossInputs, options: LossOptions, parts: list[LossInputs]) -> tuple[Tensor, Tensor, dict[str, Metric]]:
    """Loss, gradient with respect to `whole.logp` and metrics of a batch given as micro-batches."""
    counts, threshold = totals(whole), threshold_of(whole, options)
    done = [(part, policy_loss(part, options, entropy_threshold=threshold)) for part in parts]
    loss = torch.stack([reduce(per_token, part, options.loss_type, counts) for part, per_token in done]).sum()
    (gradient,) = torch.autograd.grad(loss, whole.logp)
    return loss.detach(), gradient, combine(per_token.metrics for _, per_token in done)


def whole_run(inputs: LossInputs, options: LossOptions) -> tuple[Tensor, Tensor, dict[str, Metric]]:
    return run(inputs, options, [inputs])


def trl_options(options: LossOptions) -> dict[str, Any]:
    """The same options under TRL's names, for the corrections that TRL has."""
    named = {
        name: getattr(options, name)
        for name in LossOptions.model_fields
        if not name.startswith("importance_sampling_clip")
        and name not in ("off_policy_correction", "dppo_threshold", "entropy_target", "env_token_loss_coef")
        and not name.startswith("covariance")
    }
    return named | {
        "vllm_importance_sampling_mode": {
            "tis": "token_truncate",
            "icepop": "token_mask",
            "sequence_truncate": "sequence_truncate",
        }.get(options.off_policy_correction, "sequence_mask"),
        "vllm_importance_sampling_clip_max": options.importance_sampling_clip_max,
        "vllm_importance_sampling_clip_min": options.importance_sampling_clip_min,
        "max_completion_length": LONGEST,
    }
