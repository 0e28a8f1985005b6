"""Evaluation on tasks that training never shows: a mean over what was verified, failures counted apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quintain.config import EvaluationConfig
from quintain.trainers.examples import Example
from quintain.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, for people to read."""

    task: str
    prompt: str
    answer: str
    reward: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`heldout` is the mean reward over the `verified` trajectories, None where all failed; `failed` had none.

    On a data set it is the loss over the `verified` rows, and `metrics` are what else was measured.
    """

    step: int
    heldout: float | None
    verified: int
    failed: int
    elapsed_s: float
    samples: tuple[Sample, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The figure as people read it."""
        if self.metrics:
            return f"loss {self.heldout:.4g}"
        return "no verdicts" if self.heldout is None else f"{self.heldout:.1%}"


class Measures(Protocol):
    """What an evaluation on a data set needs of the model's side (`Learner`)."""

    def measure(self, data: Sequence[Example]) -> dict[str, float]: ...


class HeldoutExamples:
    """Examples that training never sees, and what the loss says of them."""

    def __init__(self, learner: Measures, examples: Sequence[Example]) -> None:
        self._learner, self._examples = learner, examples

    def evaluate(self, step: int) -> Evaluation:
        """The loss and the metrics after `step` steps."""
        metrics = self._learner.measure(self._examples)
        metrics.pop("num_tokens", None)  # the same each time
        return Evaluation(step, metrics["loss"], len(self._examples), 0, 0.0, (), metrics)


class PlaysTasks(Protocol):
    """What an evaluation needs of the rollout server (`RolloutClient`)."""

    def run_tasks(self, split: str, indices: range, *, temperature: float, seed: int) -> list[Group]: ...


class HeldoutTasks:
    """The first `tasks` tasks of the evaluation's split, played by the published policy."""

    def __init__(self, rollout: PlaysTasks, config: EvaluationConfig, *, tasks: int, seed: int) -> None:
        self._rollout, self._config, self._tasks, self._seed = rollout, config, range(tasks), seed

    def evaluate(self, step: int) -> Evaluation:
        """What the policy scores after `step` steps. FailureError (lost) where its weights must be published again."""
        split, temperature = self._config.split, self._config.temperature
        groups = self._rollout.run_tasks(split, self._tasks, temperature=temperature, seed=self._seed)
        return evaluation_of(groups, step=step)


def heldout_at(step: int) -> str:
    """What an evaluation after `step` steps is called."""
    return f"held-out after {step} steps" if step else "held-out before training"


def evaluation_of(groups: Sequence[Group], *, step: int, elapsed_s: float = 0.0) -> Evaluation:
    """What `groups`, all of one evaluation, say."""
    rows = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = [row.reward for row in rows if row.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else None
    samples = tuple(_sample(row) for row in rows if row.reward is not None)
    return Evaluation(step, mean, len(rewards), len(rows) - len(rewards), elapsed_s, samples)


def _sample(row: Trajectory) -> Sample:
    asked = row.prompt[-1].text if row.prompt else ""
    said = row.turns[-1].message.text if row.turns else ""
    return Sample(row.task, asked, said, row.reward or 0.0)
