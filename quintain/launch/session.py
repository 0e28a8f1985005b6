"""A training run once its servers are coming up: the learner, the loop, and what it shows and leaves behind.

Importing this module imports torch; `launch.train` does so while the servers start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintain.config import ExperimentConfig
from quintain.failure import QuintainError
from quintain.launch.display import Display, before_after
from quintain.launch.guards import Guarded, StepGuard
from quintain.launch.model_card import hub_repository, push, write_card
from quintain.launch.ranks import STORE_ENV
from quintain.launch.report import MetricsLog, draw_curve, first_evaluation, write_summary
from quintain.launch.run_folder import RunFolder, differences, with_choices_of
from quintain.launch.servers import Address
from quintain.rollout.client import RolloutClient
from quintain.rollout.wire import BatchProgress
from quintain.trainers.algorithms import algorithm_of
from quintain.trainers.checkpoint import Progress, latest_checkpoint
from quintain.trainers.datasets import Data
from quintain.trainers.heldout import Evaluation, HeldoutExamples, HeldoutSplit, HeldoutTasks, heldout_at
from quintain.trainers.learner import Learner
from quintain.trainers.loop import Evaluator, Hooks, Loop, Result, Stopped
from quintain.trainers.publishing.publish import PolicyPublisher
from quintain.trainers.ranks import Ranks, is_loss
from quintain.trainers.sources import BatchSource, RolloutSource, Tells, WithExamples


class Interrupted(Exception):
    """The run was asked to stop and has; `step` whole steps are saved."""

    def __init__(self, step: int) -> None:
        self.step = step


LOST_S = 5.0
"""How long it may take until the supervisor knows that a rank has ended."""


def joined(check: Callable[[], None] = lambda: None) -> Ranks:
    """This process among the ranks that its environment speaks of, once all are there."""
    environ, store = os.environ, os.environ.get(STORE_ENV)
    world = int(environ.get("WORLD_SIZE", "1"))
    return Ranks.joined(int(environ.get("RANK", "0")), world, Path(store) if store else None, check=check)


def agree(ranks: Ranks, difference: str) -> None:
    """QuintainError on every rank where one of them was started with another experiment: `difference`."""
    for rank, other in enumerate(ranks.gathered(difference)):
        if other:
            raise QuintainError(f"rank {rank} was started with another experiment than rank 0: {other}")


def follow(own: ExperimentConfig | None) -> int:
    """Be a rank beyond the first until rank 0 has done; `own` is the experiment that a launcher's rank is given."""
    ranks = joined()
    try:
        text, path = ranks.told(("", Path()))
        config, run = ExperimentConfig.model_validate_json(text), RunFolder(path)
        agree(ranks, "" if own is None else differences(config, with_choices_of(own, config)))
        learner = Learner(config, algorithm_of(config), checkpoints=run.checkpoints, logs=run.logs, ranks=ranks)
        address: Address | None = ranks.told(None)
        if address is None or config.dataset is not None:  # the examples of a dataset come from rank 0
            learner.follow(None)
        else:
            with RolloutClient(address.url, address.token) as client:
                learner.follow(RolloutSource(client).batch)
    except RuntimeError as error:
        if not is_loss(error):
            raise
        print("another rank is gone, and with it this one's work")
        return 1
    except QuintainError as error:
        print(f"Error: {error}")
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run: its config and folder, what shows it, and `check`, which raises `Stopped` or QuintainError."""

    config: ExperimentConfig
    run: RunFolder
    display: Display
    check: Callable[[], None]
    heldout: Sequence[int]
    began: float
    beside: Data | None = None
    """Examples that are trained on beside what is sampled."""

    def train(self, trained_on: Callable[[], Address] | Data, *, resume: bool) -> dict[str, Any]:
        """Train to the end and write what a run leaves; its summary. On data, or on what is sampled: then `trained_on`
        waits for the rollout server.

        Raises Interrupted, QuintainError and FailureError with the last whole step saved.
        """
        progress, loop, learner = Progress(0, 0, 0, 0.0), None, None
        try:
            ranks = joined(self.check)
            ranks.told((self.config.model_dump_json(), self.run.path))
            agree(ranks, "")
            learner = Learner(
                self.config,
                algorithm_of(self.config),
                checkpoints=self.run.checkpoints,
                logs=self.run.logs,
                check=self.check,
                ranks=ranks,
            )
            there = trained_on if isinstance(trained_on, Data) else trained_on()
            ranks.told(there if isinstance(there, Address) else None)
            progress = self._progress(learner, resume)
            for line in learner.notes:
                self.display.say(line)
            with self._connected(learner, there) as (source, publisher, evaluator):
                log = MetricsLog(self.run.metrics, from_step=progress.step)
                self.display.begin(progress.step)
                loop = Loop(
                    self.config,
                    source=source,
                    learner=learner,
                    publisher=publisher,
                    evaluator=evaluator,
                    hooks=self._hooks(log, learner, source),
                    progress=progress,
                    began=self.began,
                )
                result = loop.run()
        except Stopped:
            raise Interrupted((loop.progress if loop is not None else progress).step) from None
        except RuntimeError as error:
            self._explain(error)
            raise
        finally:
            if learner is not None:
                learner.ranks.leave()
        self.display.close()
        return self._conclude(result)

    def _explain(self, error: RuntimeError) -> None:
        """QuintainError where `error` is that another rank is gone."""
        if not is_loss(error):
            return
        until = time.monotonic() + LOST_S
        while time.monotonic() < until:  # whoever started that rank knows more, in a moment
            self.check()
            time.sleep(0.1)
        raise QuintainError("another rank of the trainer is gone: see what its launcher says, then go on with --resume")

    def _progress(self, learner: Learner[Any], resume: bool) -> Progress:
        checkpoint = latest_checkpoint(self.run.checkpoints) if resume else None
        return learner.restore(checkpoint) if checkpoint is not None else Progress(0, 0, 0, 0.0)

    @contextmanager
    def _connected(
        self, learner: Learner[Any], trained_on: Address | Data
    ) -> Iterator[tuple[BatchSource[Any], PolicyPublisher | None, Evaluator | None]]:
        if isinstance(trained_on, Data):
            evaluator = HeldoutExamples(learner, trained_on.heldout) if trained_on.heldout else None
            try:
                yield trained_on.source, None, evaluator
            finally:
                learner.close()
            return
        client = RolloutClient(trained_on.url, trained_on.token, poll=self._poll)
        publisher = PolicyPublisher(learner, client, self.config.rollout, scratch=self.run.path / "weights")
        try:
            source: BatchSource[Any] = Guarded(
                RolloutSource(client),
                stop=self.config.guards.first_step == "stop",
                say=self.display.say,
                rewards=self.config.online.learns_from_rewards,
            )
            source = source if self.beside is None else WithExamples(source, self.beside.source)
            yield source, publisher, self._evaluator(client)
        finally:
            publisher.close()
            learner.close()
            client.close()

    def _evaluator(self, client: RolloutClient) -> HeldoutTasks | None:
        evaluation = self.config.evaluation
        if evaluation is None or not sum(self.heldout):
            return None
        splits = [
            HeldoutSplit(played.label, played.heldout_split or evaluation.split, tasks)
            for played, tasks in zip(self.config.plays, self.heldout, strict=True)
        ]
        return HeldoutTasks(client, splits, temperature=evaluation.temperature, seed=self.config.seed)

    def _poll(self, waiting: BatchProgress | None) -> None:
        self.check()
        if waiting is not None:
            self.display.progress(waiting.done, waiting.total)

    def _hooks(self, log: MetricsLog, learner: Learner[Any], source: BatchSource[Any]) -> Hooks:
        display = self.display

        def evaluated(result: Evaluation) -> None:
            display.away(result.elapsed_s)
            over = (
                f"{result.verified} rows" if result.metrics else f"{result.verified} verified, {result.failed} failed"
            )
            display.say(f"{heldout_at(result.step)}: {result.title} of {over} ({result.elapsed_s:.0f} s)")
            figures = asdict(result)
            figures |= {f"eval_{name}": value for name, value in figures.pop("metrics").items()}
            figures |= {f"heldout/{name}": value for name, value in figures.pop("environments").items()}
            figures = {name: value for name, value in figures.items() if name not in ("step", "samples")}
            log.write("eval", result.step, figures)

        steps = StepGuard(stop=self.config.guards.every_step == "stop", say=display.say)

        def stepped(step: int, metrics: dict[str, float]) -> None:
            metrics = metrics | (source.figures if isinstance(source, Tells) else {})
            log.write("train", step, metrics)
            learner.track(step, metrics)
            display.step(step, metrics)
            steps.see(metrics)

        return Hooks(display.say, display.phase, stepped, evaluated, self.check)

    def _conclude(self, result: Result) -> dict[str, Any]:
        """Write the summary, the curve and the model's card, show the table, say where everything is."""
        progress = result.progress
        summary = {
            "heldout_before": progress.heldout_before,
            "heldout_after": result.after.heldout if result.after else None,
            "train_wall_s": round(progress.train_wall_s, 2),
            "steps": progress.step,
            "seed": self.config.seed,
            "versions": progress.version,
            "heldout_tasks": sum(self.heldout),
            "consumed_groups": progress.consumed_groups,
            **{f"eval_{name}": value for name, value in (result.after.metrics if result.after else {}).items()},
            **{f"heldout/{name}": mean for name, mean in (result.after.environments if result.after else {}).items()},
        }
        write_summary(self.run.summary, summary)
        draw_curve(self.run.metrics, self.run.curve, title=f"{self.config.name}, seed {self.config.seed}")
        folder = write_card(self.config, self.run, summary)
        if result.after is not None:
            shown = self.config.evaluation.samples_shown if self.config.evaluation else 0
            before = result.before or first_evaluation(self.run.metrics)  # a resumed run has it in its log alone
            for table in before_after(before, result.after, shown=shown):
                self.display.console.print(table)
        self.display.console.print(
            f"{progress.step} steps in {progress.train_wall_s:.0f} s of training; curve: {self.run.curve}",
            highlight=False,
            soft_wrap=True,
        )
        if folder is not None and (repository := hub_repository(self.config)) is not None:
            self.display.console.print(f"the model is on the hub: {push(folder, repository)}", soft_wrap=True)
        return summary
