"""Reward models: which of two answers is better (Bradley-Terry), and which steps of an answer are right.

A score is read at the last token of what it judges: a row has one token more, which nobody reads, and what the model
says before it is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from quintain.arrays import Ints
from quintain.config.offline import PRMConfig, RewardConfig
from quintain.trainers.algorithms.base import DatasetAlgorithm
from quintain.trainers.examples import Example, counts_of, sequence_row
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.preference import reward_losses
from quintain.trainers.rows import Row, Rows, Totals


def _judged(ids: Ints, places: Sequence[int], unit: int, columns: Mapping[str, ArrayLike]) -> Row:
    """The row of `ids` [L] that is judged at `places`."""
    mask = np.zeros(len(ids) + 1, np.bool_)
    mask[np.asarray(places, np.int64) + 1] = True
    return sequence_row(np.append(ids, ids[-1:]), mask, unit, {}).having(columns)


def _rows(rows: Sequence[Row], data: Sequence[Example]) -> Rows:
    tokens = float(sum(example.tokens for example in data))
    return Rows(tuple(rows), counts_of(rows, sum(row.tokens for row in rows)), {"num_tokens": tokens})


class RewardModel(DatasetAlgorithm[RewardConfig]):
    """The Bradley-Terry loss on pairs."""

    trains = ("reward",)

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """Two rows for each pair, judged at their last tokens."""
        margins = [example.margin or 0.0 for example in data]
        rows = [
            _judged(ids, [len(ids) - 1], unit, {"margin": np.float32(margins[unit])})
            for unit, example in enumerate(data)
            for ids in example.ids
        ]
        return _rows(rows, data)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over pairs."""
        assert inputs.value is not None
        scores, margin = inputs.row_sum(inputs.value), inputs.row_sum(inputs.columns["margin"])[0::2]
        chosen, rejected = scores[0::2], scores[1::2]
        losses = reward_losses(
            chosen, rejected, margin=margin, center_rewards_coefficient=self.config.center_rewards_coefficient
        )
        every, each = torch.ones_like(scores, dtype=torch.bool), torch.ones_like(chosen, dtype=torch.bool)
        drafts = {
            "accuracy": draft(Kind.MEAN, chosen > rejected, each),
            "margin": draft(Kind.MEAN, chosen - rejected, each),
            "mean_reward": draft(Kind.MEAN, scores, every),
            "min_reward": draft(Kind.MIN, scores, every),
            "max_reward": draft(Kind.MAX, scores, every),
        }
        return losses.sum() / max(totals.units, 1), fetched(drafts)


class ProcessRewardModel(DatasetAlgorithm[PRMConfig]):
    """Cross-entropy on the label of each step (arXiv 2211.14275)."""

    trains = ("reward",)

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """A row for each example, judged at the last token of each of its steps."""
        rows = [
            _judged(
                example.ids[0],
                [end - 1 for _, end in example.trained[0]],
                unit,
                {"label": np.asarray(example.labels, np.float32)},
            )
            for unit, example in enumerate(data)
        ]
        return _rows(rows, data)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over all steps; a value is the logit of "right" minus that of "wrong"."""
        assert inputs.value is not None
        right = inputs.columns["label"] > 0.5
        losses = -logsigmoid(torch.where(right, inputs.value, -inputs.value))
        drafts = {"accuracy": draft(Kind.MEAN, (inputs.value > 0) == right, inputs.mask)}
        return losses.sum() / max(totals.tokens, 1), fetched(drafts)
