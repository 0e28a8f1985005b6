"""What a loss is given: flat tensors, one entry per policy token of a micro-batch.

Packed, tree-packed and padded batches are all the same here: tokens in any order, each saying which row it belongs to
(padding is a token that the mask leaves out). T is the number of entries, R the number of rows. Invariants: all tensors
are [T]; a row is never split between micro-batches, so statistics per row are local; a token that the mask leaves out
influences neither value nor gradient, whatever it holds (−inf and NaN included).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

LOG_BOUND = 20.0
"""Exponents are held below this (e^20 ≈ 5e8), as TRL does for vespo: float32 neither overflows nor turns
0 · inf into NaN in the backward pass. Beyond it a term is constant, so such a token has no gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One micro-batch of R rows (training sequences) with T policy tokens. Raises ValueError on wrong shapes.

    logp: log-probability of each sampled token under the policy, with a gradient; 0 of a model without an LM head.
        Half precision is computed in float32; float64 stays float64.
    row: int64, which row the token belongs to, 0 .. rows − 1.
    rows: R, rows without any token included.
    advantage: per token; for one value per row pass `advantage_R[row]`. 0 where the rows have none.
    mask: bool, which tokens are trained on.
    old_logp: under the proximal policy, or None for exactly on-policy (then the detached `logp`).
    sampler_logp: μ, under the sampler; NaN where it gave none (such a token is not corrected, nor evidence).
    ref_logp: under the reference model; needed when `beta` > 0.
    entropy: of the policy's distribution, in nats; needed for `top_entropy_quantile` and, with a gradient, for
        `entropy_coef`, otherwise only logged.
    best: the policy's highest log-probability there, without a gradient; `logp` where the token is the likeliest.
    log_mass: log Σ p² of the policy's distribution, without a gradient.
    value: of a model with a value head, what it expects before each token, with a gradient.
    divergence: how far the policy's distribution is from a teacher's, with a gradient.
    unit: int64, which unit (`Row.unit`) the token belongs to, 0 .. units − 1; None: each row is one.
    columns: the rows' other columns, by name.
    All log-probabilities are after division of the logits by the temperature.
    """

    logp: Tensor
    row: Tensor
    rows: int
    advantage: Tensor
    mask: Tensor
    old_logp: Tensor | None = None
    sampler_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None
    best: Tensor | None = None
    log_mass: Tensor | None = None
    value: Tensor | None = None
    divergence: Tensor | None = None
    unit: Tensor | None = None
    units: int = 0
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logp.dim() != 1:
            raise ValueError(f"logp: expected a flat tensor [T]; got shape {tuple(self.logp.shape)}")
        for name, value in {f.name: getattr(self, f.name) for f in fields(self)}.items():
            if isinstance(value, Tensor) and value.shape != self.logp.shape:
                raise ValueError(
                    f"{name}: expected the shape of logp, {tuple(self.logp.shape)}; got {tuple(value.shape)}"
                )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"mask: expected dtype bool; got {self.mask.dtype}")
        if self.row.dtype != torch.int64:
            raise ValueError(f"row: expected dtype int64; got {self.row.dtype}")

    @property
    def proximal_logp(self) -> Tensor:
        """[T]: `old_logp`, or the detached policy itself where there is none."""
        return self.logp.detach() if self.old_logp is None else self.old_logp

    def row_sum(self, values: Tensor) -> Tensor:
        """[T] to [R]: the sum over each row's masked-in tokens; 0 for a row without any."""
        kept = torch.where(self.mask, values, 0.0)
        return kept.new_zeros(self.rows).index_add(0, self.row, kept)

    def row_tokens(self) -> Tensor:
        """[R]: how many tokens of each row the mask keeps, in the dtype of `logp`."""
        return self.row_sum(torch.ones_like(self.logp))

    def row_mean(self, values: Tensor) -> Tensor:
        """[T] to [R]: the mean over each row's masked-in tokens; 0 for a row without any."""
        return self.row_sum(values) / self.row_tokens().clamp(min=1.0)


def cleaned(inputs: LossInputs) -> LossInputs:
    """The same with zeros wherever the mask is False, in at least float32, a gradient in `logp` only."""
    dtype = torch.promote_types(inputs.logp.dtype, torch.float32)

    def clean(values: Tensor) -> Tensor:
        # `where` before anything else: its backward gives an exact 0 even if the hidden entry is −inf or NaN.
        return torch.where(inputs.mask, values, 0.0).to(dtype)

    def detached(values: Tensor | None) -> Tensor | None:
        return None if values is None else clean(values.detach())

    return replace(
        inputs,
        logp=clean(inputs.logp),
        advantage=clean(inputs.advantage.detach()),
        old_logp=detached(inputs.old_logp),
        sampler_logp=detached(inputs.sampler_logp),
        ref_logp=detached(inputs.ref_logp),
        entropy=detached(inputs.entropy),
        columns={name: clean(values.detach()) for name, values in inputs.columns.items()},
    )


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp(x), with x held at `LOG_BOUND`: never infinite, and without a gradient beyond it."""
    return torch.exp(exponent.clamp(max=LOG_BOUND))
