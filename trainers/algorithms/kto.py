"""KTO: completions that are desirable or not, against a reference and the policy's distance from it.

That distance is estimated on each prompt with another's completion, within a step's own examples: so the order of the
data does not matter, and nothing depends on what was trained on before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quintain.config.offline import BCOConfig, KTOConfig
from quintain.trainers.algorithms.base import DatasetAlgorithm, Pass
from quintain.trainers.examples import Example, counts_of, example_rows, mask_of, sequence_row
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Draft, Kind, Metrics, draft, fetched, token_metrics
from quintain.trainers.losses.preference import bco_losses, kto_losses
from quintain.trainers.rows import Row, Rows, Totals


def labelled_rows(data: Sequence[Example]) -> Rows:
    """A row for each example, with the columns `desirable`, 1 or 0, and `margin`, what its reward adds to the margin.

    The margin is the mean reward of the desirable minus that of the others, as a mean over all.
    """
    good = sum(bool(example.label) for example in data)
    shares = {True: len(data) / max(good, 1), False: -len(data) / max(len(data) - good, 1)}
    labels = [bool(example.label) for example in data]
    return example_rows(data).having([{"desirable": float(label), "margin": shares[label]} for label in labels])


def labelled_metrics(inputs: LossInputs, rewards: Tensor, desirable: Tensor) -> dict[str, Draft]:
    """Rewards and log-probabilities of rows [R] under TRL's names."""
    margins = rewards * inputs.row_mean(inputs.columns["margin"])
    logps = inputs.row_sum(inputs.logp)
    return token_metrics(inputs) | {
        "rewards/chosen": draft(Kind.MEAN, rewards, desirable),
        "rewards/rejected": draft(Kind.MEAN, rewards, ~desirable),
        "rewards/margins": draft(Kind.MEAN, margins, torch.ones_like(desirable)),
        "logps/chosen": draft(Kind.MEAN, logps, desirable),
        "logps/rejected": draft(Kind.MEAN, logps, ~desirable),
    }


def log_ratios(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """([R] log-ratios of policy and reference, [R] bool: desirable)."""
    assert inputs.ref_logp is not None
    return inputs.row_sum(inputs.logp - inputs.ref_logp), inputs.row_mean(inputs.columns["desirable"]) > 0.5


class KTO(DatasetAlgorithm[KTOConfig]):
    """Kahneman-Tversky optimisation (arXiv 2402.01306), and APO-zero for single completions, which has no KL."""

    def __init__(self, config: KTOConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self._has_kl = config.loss_type == "kto"
        reference = set() if config.precompute_ref_log_probs else {Pass.REF}
        self.passes = frozenset(reference | ({Pass.OLD} if self._has_kl else set()))

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """A row for each example, and for the KL one of each prompt with the completion of the example before."""
        rows = labelled_rows(data)
        if not self._has_kl:
            return rows
        mismatched = [_mismatched(example, data[at - 1], len(data) + at, at) for at, example in enumerate(data)]
        own = rows.having([{"kl_of": 0.0}] * len(data)).rows
        return replace(rows, rows=(*own, *mismatched), totals=counts_of(own, rows.totals.tokens))

    def credit(self, rows: Rows) -> Rows:
        """The KL of the batch, at least 0, on every row."""
        if not self._has_kl:
            return rows
        ratios = [float(np.sum(row.columns["old"] - row.columns["ref"])) for row in rows.rows if _is_for_kl(row)]
        kl = max(0.0, float(np.mean(ratios)))
        return rows.having([{"kl": kl}] * len(rows.rows), {"kl": kl})

    def inert(self, row: Row) -> bool:
        """What is there for the KL alone is not trained on."""
        return self._has_kl and _is_for_kl(row)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over examples."""
        config = self.config
        ratios, desirable = log_ratios(inputs)
        kl = inputs.row_mean(inputs.columns["kl"]) if self._has_kl else None
        weights = torch.where(desirable, config.desirable_weight, config.undesirable_weight)
        losses = weights * kto_losses(ratios, desirable, config.beta, kl)
        return losses.sum() / max(totals.units, 1), fetched(labelled_metrics(inputs, config.beta * ratios, desirable))


def _is_for_kl(row: Row) -> bool:
    return bool(row.columns["kl_of"][0])


def _mismatched(example: Example, other: Example, unit: int, prefix: int) -> Row:
    """The prompt of `example` with the completion of `other`; the prompt is in a tree with its own completion."""
    completion = other.ids[0][other.prompt :]
    ids = np.concatenate([example.ids[0][: example.prompt], completion])
    row = sequence_row(ids, mask_of(ids, ((max(1, example.prompt), len(ids)),)), unit, {})
    return replace(row, prefix=prefix).having({"kl_of": 1.0, "desirable": 0.0, "margin": 0.0})


class BCO(DatasetAlgorithm[BCOConfig]):
    """Binary classifier optimisation (arXiv 2404.04656): is a completion's reward above the mean so far?"""

    def __init__(self, config: BCOConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.state = {"delta": 0.0, "rewards": 0.0}
        self.passes = frozenset({Pass.OLD} | (set() if config.precompute_ref_log_probs else {Pass.REF}))

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """A row for each example."""
        return labelled_rows(data)

    def credit(self, rows: Rows) -> Rows:
        """The mean of all rewards so far, this batch's included, on every row."""
        rewards = [self.config.beta * float(np.sum(row.columns["old"] - row.columns["ref"])) for row in rows.rows]
        count = self.state["rewards"] + len(rewards)
        delta = (self.state["delta"] * self.state["rewards"] + sum(rewards)) / max(count, 1.0)
        return rows.having([{"delta": delta}] * len(rows.rows), {"delta": delta, "delta_rewards": count})

    def remember(self, figures: Mapping[str, float]) -> None:
        """Keep the mean, and of how many rewards it is."""
        self.state = {"delta": figures["delta"], "rewards": figures["delta_rewards"]}

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over examples."""
        beta = self.config.beta
        ratios, desirable = log_ratios(inputs)
        losses = bco_losses(ratios, desirable, beta, inputs.row_mean(inputs.columns["delta"]))
        return losses.sum() / max(totals.units, 1), fetched(labelled_metrics(inputs, beta * ratios, desirable))
