"""Evaluation on tasks that training never shows: a mean over what was verified, failures counted apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from quintain.failure import QuintainError
from quintain.nearest import one_of
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
    environments: Mapping[str, float | None] = field(default_factory=dict)
    """The same mean for each of several environments."""

    @property
    def title(self) -> str:
        """The figure as people read it."""
        if self.metrics:
            return f"loss {self.heldout:.4g}"
        parts = ", ".join(f"{name} {_share(mean)}" for name, mean in self.environments.items())
        return f"{_share(self.heldout)} ({parts})" if parts else _share(self.heldout)

    def figure(self, name: str | None) -> tuple[float | None, bool]:
        """The figure of that name, None is the held-out one, and whether more of it is better. QuintainError."""
        if name is None:
            return self.heldout, not self.metrics
        plain = name.removeprefix("eval_")
        if plain not in self.metrics:
            raise QuintainError(
                f"evaluation.metric_for_best_model: nothing measures {name!r}{one_of(plain, list(self.metrics))}"
            )
        return self.metrics[plain], not plain.endswith("loss")


def _share(mean: float | None) -> str:
    return "no verdicts" if mean is None else f"{mean:.1%}"


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

    def run_tasks(
        self, split: str, indices: range, *, temperature: float, seed: int, environment: str
    ) -> list[Group]: ...


@dataclass(frozen=True, slots=True)
class HeldoutSplit:
    """The first `tasks` tasks of `split` of `environment`."""

    environment: str
    split: str
    tasks: int


class HeldoutTasks:
    """Held-out tasks of one environment or several, played by the published policy."""

    def __init__(self, rollout: PlaysTasks, splits: Sequence[HeldoutSplit], *, temperature: float, seed: int) -> None:
        self._rollout, self._splits, self._temperature, self._seed = rollout, tuple(splits), temperature, seed

    def evaluate(self, step: int) -> Evaluation:
        """What the policy scores after `step` steps. FailureError (lost) where its weights must be published again."""
        played = {
            one.environment: self._rollout.run_tasks(
                one.split,
                range(one.tasks),
                temperature=self._temperature,
                seed=self._seed,
                environment=one.environment,
            )
            for one in self._splits
        }
        whole = evaluation_of([group for groups in played.values() for group in groups], step=step)
        if len(played) == 1:
            return whole
        means = {name: evaluation_of(groups, step=step).heldout for name, groups in played.items()}
        return replace(whole, environments=means)


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
