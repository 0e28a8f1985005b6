"""What an algorithm is to the learner: rows out of data, their credit, and a loss on them.

The learner and the loop know this file and no algorithm. Invariants: an algorithm has no state but its numbers in
`state`, credit and loss change nothing, and the loss's parts over the micro-batches of a batch add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Generic, TypeVar

from torch import Tensor

from quintain.config import TrainerConfig
from quintain.config.trainer import OnlineConfig
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Metrics
from quintain.trainers.rows import Row, Rows, Totals, episode_rows
from quintain.trajectory import Group

Data = TypeVar("Data")
"""A batch: `Sequence[Group]` where it was sampled, a sequence of examples where it comes from a dataset."""
Options = TypeVar("Options", bound=TrainerConfig)
OnlineOptions = TypeVar("OnlineOptions", bound=OnlineConfig)


class Pass(StrEnum):
    """A forward pass without a gradient over all rows that are not masked, before credit; its column has its name."""

    OLD = "old"
    """Log-probabilities under the policy as it is before the first update on the batch."""
    REF = "ref"
    """Log-probabilities under the reference: the policy before training."""
    VALUE = "value"
    """What the critic expects at each policy token, before it is sampled; in `NEXT_VALUE` what it expects after it."""
    TEACHER = "teacher"
    """Log-probabilities under the teacher."""
    ENTROPY = "entropy"
    """Entropies under the policy."""


NEXT_VALUE = "next_value"
"""The column of what the critic expects before the policy token that follows, or after the row's last."""


class Algorithm(ABC, Generic[Data, Options]):
    """One file of `algorithms` each. As it stands here, which is what most want, it trains one model, needs no passes,
    gives no credit, counts every row and remembers nothing; `longest` is the completion limit in tokens."""

    passes: frozenset[Pass] = frozenset()
    trains: tuple[str, ...] = ("policy",)
    """The models that are trained, by name; the first is the one that is published and saved as the run's."""

    def __init__(self, config: Options, *, longest: int) -> None:
        self.config, self.longest = config, longest
        self.state: dict[str, float] = {}
        """Numbers that change from batch to batch; they are in the checkpoint."""

    @abstractmethod
    def rows(self, data: Data, *, version: int) -> Rows:
        """The rows of a batch; `version` is the trainer's. QuintainError where they cannot be made."""

    def credit(self, rows: Rows) -> Rows:
        """The rows with what the loss reads: advantages, say, and thresholds that need the whole batch."""
        return rows

    def inert(self, row: Row) -> bool:
        """Whether `row`, credited, has no loss and no gradient, so that it need not be run at all."""
        return False

    @abstractmethod
    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """A micro-batch's part of the loss of `model`, a scalar with a gradient, and of the metrics."""

    def remember(self, figures: Mapping[str, float]) -> None:
        """Change `state` by the figures of a step that is done."""


class DatasetAlgorithm(Algorithm[Sequence[Example], Options]):
    """One on a data set."""

    def rows(self, data: Sequence[Example], *, version: int) -> Rows:
        """A row for each sequence of each example, which is a unit."""
        return example_rows(data)


class EpisodeAlgorithm(Algorithm[Sequence[Group], OnlineOptions]):
    """One on what the policy samples."""

    def rows(self, data: Sequence[Group], *, version: int) -> Rows:
        """A row for each segment."""
        return episode_rows(data, self.config, version=version, longest=self.longest)
