"""The training loop: a batch, an update, a publish; evaluations and checkpoints between.

All algorithms share it, whatever they train on. Invariants:
- weights change only in `Learner.update`, whole steps at a time, so a stop between two calls is at a whole step;
- version n is the weights after n updates, and the engine is proven to have them before anything is sampled at n;
- a run that is stopped, by Ctrl-C, by a mistake in its environment or by a full disk, leaves the checkpoint of its
  last whole step where the disk allows it, and says how to go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from quintain.config import ExperimentConfig
from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.rollout.wire import PublishAnswer
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import Evaluation, heldout_at
from quintain.trainers.sources import BatchSource

PUBLISH_ATTEMPTS = 2

Data = TypeVar("Data", bound=Sized)
Wanted = TypeVar("Wanted", contravariant=True)
Answer = TypeVar("Answer")


class Stopped(Exception):
    """Somebody asked the run to stop; it does at the last whole step."""


class Trainee(Protocol[Wanted]):
    """What the loop needs of the model's side (`Learner`)."""

    def update(self, data: Wanted, *, step: int) -> dict[str, float]:
        """Train on a batch; the figures to log."""

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""


class Publisher(Protocol):
    """What puts the policy's weights in force where it samples (`publish.PolicyPublisher`)."""

    def publish(self, version: int, *, admit: bool) -> PublishAnswer:
        """Put the weights in force as `version`; FailureError where the engine cannot prove them."""

    def admit(self, version: int) -> None:
        """Let training episodes start at `version`. FailureError (lost) where it must be published again."""


class Evaluator(Protocol):
    """What says how good the policy is (`heldout.HeldoutTasks`)."""

    def evaluate(self, step: int) -> Evaluation:
        """After `step` steps. FailureError (lost) where the weights must be published again."""


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


class Loop(Generic[Data]):
    """Trains from `progress` to `max_steps`: without a publisher nothing samples, without an evaluator nothing is
    evaluated."""

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        source: BatchSource[Data],
        learner: Trainee[Data],
        publisher: Publisher | None,
        evaluator: Evaluator | None,
        hooks: Hooks,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        self.config, self.source, self.learner, self.hooks = config, source, learner, hooks
        self.publisher, self.evaluator = publisher, evaluator
        self.progress, self.clock = progress, clock
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
        while self.progress.step < trainer.max_steps and not self._stalled():
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
        self.hooks.phase(f"sampling for step {step + 1}" if self.publisher else f"reading for step {step + 1}")
        data = self._asked(lambda: self.source.batch(step), admit=True)
        sampled = self.clock()
        self.hooks.phase(f"training step {step + 1}")
        metrics = self.learner.update(data, step=step)
        done = self.clock()
        consumed = self.progress.consumed_groups + len(data)
        self.progress = replace(self.progress, step=step + 1, version=step + 1, consumed_groups=consumed)
        wall = done - began
        metrics |= {"rollout_s": sampled - began, "update_s": done - sampled, "step_time": wall, **self._published}
        metrics["wall_s"] = self._progress_now().train_wall_s
        metrics["tokens_per_s"] = metrics.get("num_tokens", 0.0) / max(wall, 1e-9)
        self.hooks.step(step, metrics)

    def _asked(self, ask: Callable[[], Answer], *, admit: bool) -> Answer:
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
        result = self._evaluate(self.evaluator, step) if self.evaluator is not None and evaluate else None
        if evaluate and not last:
            self._admit()
        return result

    def _evaluates(self, step: int, *, first: bool, last: bool) -> bool:
        evaluation = self.config.evaluation
        if evaluation is None or self.evaluator is None:
            return False
        due = evaluation.eval_steps is not None and step % evaluation.eval_steps == 0
        return (first and step == 0) or last or (due and not first)

    def _evaluate(self, evaluator: Evaluator, step: int) -> Evaluation:
        self.hooks.phase(heldout_at(step))
        began = self.clock()
        result = self._asked(lambda: evaluator.evaluate(step), admit=False)
        result = replace(result, elapsed_s=self.clock() - began)
        self._since += result.elapsed_s
        if step == 0:
            self.before = result
            self.progress = replace(self.progress, heldout_before=result.heldout)
        self.hooks.evaluated(result)
        self._judge(result)
        return result

    def _judge(self, result: Evaluation) -> None:
        """Note whether `result` is the best so far, and keep its checkpoint where that is asked for."""
        evaluation = self.config.evaluation
        assert evaluation is not None
        value, greater = result.figure(evaluation.metric_for_best_model)
        if value is None or not math.isfinite(value):
            return
        greater = greater if evaluation.greater_is_better is None else evaluation.greater_is_better
        best = self.progress.best
        if best is None or (value > best if greater else value < best):
            kept = result.step if evaluation.load_best_model_at_end else None
            self.progress = replace(self.progress, best=value, worse=0, kept=kept)
            if kept is not None:
                self._save()
        else:
            self.progress = replace(self.progress, worse=self.progress.worse + 1)

    def _stalled(self) -> bool:
        """Whether evaluations have been no better for as long as the run has patience; says so."""
        patience = self.config.evaluation and self.config.evaluation.early_stopping_patience
        if not patience or self.progress.worse < patience:
            return False
        self.hooks.say(
            f"stopped early: {self.progress.worse} evaluations in a row were no better than {self.progress.best:.4g}"
        )
        return True

    def _publish(self, *, admit: bool) -> None:
        """Publish; a refusal is tried once more, since what is in place is unknown until one is accepted."""
        if self.publisher is None:
            return
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
        if self.publisher is None:
            return
        try:
            self.publisher.admit(self.progress.version)
        except FailureError as error:
            if error.failure.kind is not FailureKind.LOST:
                raise
            self._publish(admit=True)

    def _progress_now(self) -> Progress:
        return replace(self.progress, train_wall_s=self.progress.train_wall_s + self.clock() - self._since)

    def _save(self) -> None:
        self.hooks.phase(f"saving step {self.progress.step}")
        self._saved = self.progress.step  # one attempt a step: a disk that is full now is full at the exit too
        self.learner.save(self._progress_now())

    def _save_if_newer(self) -> None:
        if self._saved == self.progress.step and self.progress.step > 0:
            return
        try:
            self._save()
        except QuintainError as error:
            self.hooks.say(f"no checkpoint of step {self.progress.step}: {error}")
