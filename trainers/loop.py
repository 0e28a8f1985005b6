"""The training loop: a batch of fresh groups, credit, an update, a publish; evaluations and checkpoints between.

All algorithms share it. Invariants:
- weights change only in `Updater.update`, whole steps at a time, so a stop between two calls is at a whole step;
- version n is the weights after n updates, and the engine is proven to have them before anything is sampled at n;
- a run that is stopped, by Ctrl-C, by a mistake in its environment or by a full disk, leaves the checkpoint of its
  last whole step where the disk allows it, and says how to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from quintain.config import ExperimentConfig
from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.rollout.wire import PublishAnswer
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import Evaluation, evaluation_of, heldout_at
from quintain.trainers.rows import failures_of
from quintain.trajectory import Group

PUBLISH_ATTEMPTS = 2


class Stopped(Exception):
    """Somebody asked the run to stop; it does at the last whole step."""


class Rollout(Protocol):
    """What the loop needs of the rollout server (`RolloutClient`)."""

    def batch(self, step: int) -> list[Group]: ...

    def run_tasks(self, split: str, indices: range, *, temperature: float, seed: int) -> list[Group]: ...

    def admit(self, version: int) -> None: ...


class Policy(Protocol):
    """What the loop needs of the model's side (`Learner`)."""

    def update(self, groups: list[Group], *, step: int) -> dict[str, float]:
        """One optimiser step on a batch."""

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""


class Publisher(Protocol):
    """What puts the policy's weights in force (`publish.Publisher`)."""

    def publish(self, version: int, *, admit: bool) -> PublishAnswer:
        """Put the weights in force as `version`; FailureError where the engine cannot prove them."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the loop tells the outside world."""

    say: Callable[[str], None]
    phase: Callable[[str], None]
    step: Callable[[int, dict[str, float]], None]
    evaluated: Callable[[Evaluation], None]
    check: Callable[[], None]  # raises Stopped or QuintainError


@dataclass(frozen=True, slots=True)
class Result:
    """How training ended. Wall times leave out held-out evaluations."""

    progress: Progress
    before: Evaluation | None
    after: Evaluation | None


class Loop:
    """Trains from `progress` to `max_steps`. `heldout` is the number of held-out tasks, 0 for none."""

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        rollout: Rollout,
        policy: Policy,
        publisher: Publisher,
        hooks: Hooks,
        progress: Progress,
        heldout: int,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        self.config, self.rollout, self.policy, self.publisher, self.hooks = config, rollout, policy, publisher, hooks
        self.progress, self.heldout, self.clock = progress, heldout, clock
        self._since = clock() if began is None else began
        self._saved = progress.step
        self.before: Evaluation | None = None
        self._published: dict[str, float] = {}

    def run(self) -> Result:
        """Train to the end. Raises Stopped, QuintainError or FailureError with the last whole step saved."""
        try:
            after = self._run()
        except (Stopped, QuintainError, FailureError):
            self._save_if_newer()
            raise
        return Result(self._progress_now(), self.before, after)

    def _run(self) -> Evaluation | None:
        trainer = self.config.trainer
        after = self._ready(first=True)
        while self.progress.step < trainer.max_steps:
            self._step()
            after = self._ready(first=False)
            if trainer.save_steps and self.progress.step % trainer.save_steps == 0:
                self._save()
        if self._saved != self.progress.step or self.progress.step == 0:
            self._save()
        return after

    def _step(self) -> None:
        """One batch, one update, one line of metrics; those of publishing are of the weights it was sampled with."""
        step, began = self.progress.step, self.clock()
        self.hooks.phase(f"sampling for step {step + 1}")
        groups = self._batch(step)
        sampled = self.clock()
        self.hooks.phase(f"training step {step + 1}")
        metrics = self.policy.update(groups, step=step)
        done = self.clock()
        consumed = self.progress.consumed_groups + len(groups)
        self.progress = replace(self.progress, step=step + 1, version=step + 1, consumed_groups=consumed)
        wall = done - began
        metrics |= {"rollout_s": sampled - began, "update_s": done - sampled, "step_time": wall, **self._published}
        metrics["wall_s"] = self._progress_now().train_wall_s
        metrics["tokens_per_s"] = metrics.get("num_tokens", 0.0) / max(wall, 1e-9)
        self.hooks.step(step, metrics)

    def _batch(self, step: int) -> list[Group]:
        groups = self._asked(lambda: self.rollout.batch(step), admit=True)
        failed = failures_of(groups)
        total = sum(len(group.trajectories) for group in groups)
        if failed.total() == total:
            what, times = failed.most_common(1)[0]
            raise QuintainError(f"all {total} episodes of step {step + 1} failed, {times} of them with: {what}")
        return groups

    def _asked(self, ask: Callable[[], list[Group]], *, admit: bool) -> list[Group]:
        """What `ask` gives, once a server that started again has its weights."""
        while True:
            try:
                return ask()
            except FailureError as error:
                if error.failure.kind is not FailureKind.LOST:
                    raise
                self._publish(admit=admit)

    def _ready(self, *, first: bool) -> Evaluation | None:
        """Publish the weights, evaluate them if it is time to, and let training episodes start."""
        self.hooks.check()
        step, last = self.progress.step, self.progress.step >= self.config.trainer.max_steps
        evaluate = self._evaluates(step, first=first, last=last)
        self._publish(admit=not (evaluate or last))
        result = self._evaluate(step) if evaluate else None
        if evaluate and not last:
            self._admit()
        return result

    def _evaluates(self, step: int, *, first: bool, last: bool) -> bool:
        evaluation = self.config.evaluation
        if evaluation is None or self.heldout == 0:
            return False
        due = evaluation.eval_steps is not None and step % evaluation.eval_steps == 0
        return (first and step == 0) or last or (due and not first)

    def _evaluate(self, step: int) -> Evaluation:
        evaluation = self.config.evaluation
        assert evaluation is not None
        self.hooks.phase(heldout_at(step))
        began = self.clock()
        split, temperature, indices = evaluation.split, evaluation.temperature, range(self.heldout)
        groups = self._asked(
            lambda: self.rollout.run_tasks(split, indices, temperature=temperature, seed=self.config.seed), admit=False
        )
        result = evaluation_of(groups, step=step, elapsed_s=self.clock() - began)
        self._since += result.elapsed_s
        if step == 0:
            self.before = result
            self.progress = replace(self.progress, heldout_before=result.heldout)
        self.hooks.evaluated(result)
        return result

    def _publish(self, *, admit: bool) -> None:
        """Publish; a refusal is tried once more, since what is in place is unknown until one is accepted."""
        self.hooks.phase(f"publishing version {self.progress.version}")
        began = self.clock()
        for attempt in range(1, PUBLISH_ATTEMPTS + 1):
            try:
                answer = self.publisher.publish(self.progress.version, admit=admit)
                self._published = {
                    "publish_s": self.clock() - began,
                    "publish_stall_s": answer.stall_s,
                    "canary_nats": answer.mismatch_mean,
                }
                return
            except FailureError as error:
                if attempt == PUBLISH_ATTEMPTS or not error.failure.retryable:
                    raise
                self.hooks.say(f"publish refused, trying again: {error.failure.message}")

    def _admit(self) -> None:
        try:
            self.rollout.admit(self.progress.version)
        except FailureError as error:
            if error.failure.kind is not FailureKind.LOST:
                raise
            self._publish(admit=True)

    def _progress_now(self) -> Progress:
        return replace(self.progress, train_wall_s=self.progress.train_wall_s + self.clock() - self._since)

    def _save(self) -> None:
        self.hooks.phase(f"saving step {self.progress.step}")
        self._saved = self.progress.step  # one attempt a step: a disk that is full now is full at the exit too
        self.policy.save(self._progress_now())

    def _save_if_newer(self) -> None:
        if self._saved == self.progress.step and self.progress.step > 0:
            return
        try:
            self._save()
        except QuintainError as error:
            self.hooks.say(f"no checkpoint of step {self.progress.step}: {error}")
