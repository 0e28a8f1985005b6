"""Metrics that add up exactly: what is carried is sums, never means.

Invariant: combining the metrics of the pieces of a batch gives those of the whole, however it was cut into
micro-batches and ranks (up to float64 rounding). Names are TRL's where the meaning is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from quintain.trainers.losses.inputs import LossInputs


class Kind(StrEnum):
    """How a metric is combined and read."""

    MEAN = "mean"
    """sum / count"""
    MIN = "min"
    """the smallest"""
    MAX = "max"
    """the largest"""
    ESS = "ess"
    """effective sample size as a share: (Σw)² / (n · Σw²), 1 when all weights are equal"""


@dataclass(frozen=True, slots=True)
class Metric:
    """`total` is a sum (or the extreme itself), `count` how many values it stands for, `squares` Σw² for ESS.

    A metric of nothing (count 0) is the identity of `+` and has no value.
    """

    kind: Kind
    total: float
    count: float
    squares: float = 0.0

    def __add__(self, other: Metric) -> Metric:
        if self.kind is not other.kind:
            raise ValueError(f"metric: expected two of one kind; got {self.kind} and {other.kind}")
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        if self.kind is Kind.MIN:
            total = min(self.total, other.total)
        elif self.kind is Kind.MAX:
            total = max(self.total, other.total)
        else:
            total = self.total + other.total
        return Metric(self.kind, total, self.count + other.count, self.squares + other.squares)

    def value(self) -> float | None:
        """The figure to log, or None when there is nothing it could be the figure of."""
        if self.count == 0:
            return None
        if self.kind is Kind.MEAN:
            return self.total / self.count
        if self.kind is Kind.ESS:
            return self.total**2 / (self.count * self.squares) if self.squares else 0.0
        return self.total


Metrics = Mapping[str, Metric]


def combine(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Merge the metrics of micro-batches and ranks, in any order; a name may be missing from some."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric
    return merged


def metric_values(metrics: Metrics) -> dict[str, float]:
    """Name to figure, leaving out metrics of nothing."""
    return {name: value for name, metric in metrics.items() if (value := metric.value()) is not None}


@dataclass(frozen=True, slots=True)
class Draft:
    """A metric still on the device: a scalar tensor each, so that one transfer fetches them all."""

    kind: Kind
    total: Tensor
    count: Tensor
    squares: Tensor


def draft(kind: Kind, values: Tensor, keep: Tensor) -> Draft:
    """Summarise the entries of `values` where `keep` is True (both of the same shape)."""
    exact = values.detach().double()
    count = keep.sum().double()
    zero = exact.new_zeros(())
    kept = torch.where(keep, exact, zero)
    if kind is Kind.MEAN:
        return Draft(kind, kept.sum(), count, zero)
    if kind is Kind.ESS:
        return Draft(kind, kept.sum(), count, kept.square().sum())
    worst = float("inf") if kind is Kind.MIN else float("-inf")
    # The appended entry keeps min and max defined for an empty micro-batch; count 0 then marks it as nothing.
    filled = torch.cat([torch.where(keep, exact, torch.full_like(exact, worst)), zero.new_full((1,), worst)])
    return Draft(kind, filled.min() if kind is Kind.MIN else filled.max(), count, zero)


def token_metrics(inputs: LossInputs, among: Tensor | None = None) -> dict[str, Draft]:
    """Entropy, and how often a token was the likeliest one, of the tokens `among` [T] bool that the mask keeps."""
    drafts = {}
    if inputs.entropy is not None:
        drafts["entropy"] = draft(Kind.MEAN, inputs.entropy, inputs.mask)
    if inputs.best is not None:
        kept = inputs.mask if among is None else inputs.mask & among
        drafts["mean_token_accuracy"] = draft(Kind.MEAN, inputs.logp.detach() >= inputs.best, kept)
    return drafts


def fetched(drafts: Mapping[str, Draft]) -> dict[str, Metric]:
    """Bring all drafts to the host in one transfer."""
    if not drafts:
        return {}
    rows = torch.stack([torch.stack([d.total, d.count, d.squares]) for d in drafts.values()]).tolist()
    return {
        name: Metric(item.kind, total, count, squares)
        for (name, item), (total, count, squares) in zip(drafts.items(), rows, strict=True)
    }
