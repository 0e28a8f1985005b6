"""`quintain train`: one run from its config to its summary.

The trainer is this process; the environment server and the rollout server are its children. Ctrl-C or SIGTERM stops
at the last whole step with a checkpoint; a second one stops at once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from quintain.config import ExperimentConfig
from quintain.failure import FailureError, QuintainError
from quintain.launch.run_folder import RunFolder, new_run, resumed_run
from quintain.launch.servers import start_environment, start_rollout
from quintain.launch.supervisor import Supervisor, share_cores
from quintain.task import size_of


def train(config: ExperimentConfig, *, resume: bool, run_dir: Path | None, as_json: bool) -> int:
    """Run the experiment; the exit code. Everything it makes is in the run's folder."""
    began = time.monotonic() - _process_age_s()
    share_cores()
    console = Console(stderr=as_json)
    check_model(config)
    run = resumed_run(config, run_dir) if resume else new_run(config, run_dir)
    console.print(f"run directory: {run.path}", highlight=False, soft_wrap=True)
    how_to_go_on = f"quintain train {run.config} --resume --run-dir {run.path}"
    supervisor = Supervisor(restarts=config.rollout.restarts, report=lambda text: console.print(text, highlight=False))
    with _stop_signals() as stopping:
        try:
            summary = _train(config, run, supervisor, stopping, console, began=began, resume=resume)
        except (QuintainError, FailureError) as error:
            detail = error.failure if isinstance(error, FailureError) else error
            console.print(f"Error: {detail}", style="red", highlight=False, soft_wrap=True)
            console.print(f"go on with: {how_to_go_on}", highlight=False, soft_wrap=True)
            return 1
        except Interrupted as stopped:
            console.print(
                f"stopped after step {stopped.step}; go on with: {how_to_go_on}",
                highlight=False,
                soft_wrap=True,
            )
            return 130
        finally:
            supervisor.stop()
    if as_json:
        print(json.dumps(summary))
    return 0


class Interrupted(Exception):
    """The run was asked to stop and has; `step` whole steps are saved."""

    def __init__(self, step: int) -> None:
        self.step = step


def _train(
    config: ExperimentConfig,
    run: RunFolder,
    supervisor: Supervisor,
    stopping: list[int],
    console: Console,
    *,
    began: float,
    resume: bool,
) -> dict[str, Any]:
    environment = start_environment(supervisor, config, run)
    with ThreadPoolExecutor(1) as beside:  # the rollout server comes up while the trainer loads
        starting = beside.submit(start_rollout, supervisor, config, run, environment)

        from quintain.envs.client import EnvClient
        from quintain.rollout.client import RolloutClient
        from quintain.trainers.checkpoint import Progress, latest_checkpoint
        from quintain.trainers.display import Display, before_after
        from quintain.trainers.evaluate import Evaluation
        from quintain.trainers.learner import Learner
        from quintain.trainers.loop import Hooks, Loop, Stopped
        from quintain.trainers.publish import Publisher
        from quintain.trainers.report import MetricsLog, draw_curve, write_summary

        def check() -> None:
            supervisor.check()
            if stopping:
                raise Stopped

        heldout = heldout_size(config, EnvClient(environment, token=config.environment.token))
        learner = Learner(config, checkpoints=run.checkpoints, logs=run.logs, check=check)
        checkpoint = latest_checkpoint(run.checkpoints) if resume else None
        progress = learner.restore(checkpoint) if checkpoint is not None else Progress(0, 0, 0, 0.0)
        for line in learner.notes:
            console.print(line, highlight=False)
        client = RolloutClient(starting.result().url, poll=lambda progress: check())
    publisher = Publisher(learner, client, config.rollout, scratch=run.path / "weights")
    try:
        log = MetricsLog(run.metrics, from_step=progress.step)
        with Display(console, steps=config.trainer.max_steps, done=progress.step) as display:

            def evaluated(result: Evaluation) -> None:
                display.away(result.elapsed_s)
                display.say(
                    f"held-out after {result.step} steps: {result.title} of {result.verified} verified,"
                    f" {result.failed} failed ({result.elapsed_s:.0f} s)"
                )
                log.write(
                    "eval",
                    result.step,
                    {k: v for k, v in asdict(result).items() if k not in ("step", "samples")},
                )

            def stepped(step: int, metrics: dict[str, float]) -> None:
                log.write("train", step, metrics)
                learner.track(step, metrics)
                display.step(step, metrics)

            hooks = Hooks(display.say, display.phase, stepped, evaluated, check)
            loop = Loop(
                config,
                rollout=client,
                policy=learner,
                publisher=publisher,
                hooks=hooks,
                progress=progress,
                heldout=heldout,
                began=began,
            )
            try:
                result = loop.run()
            except Stopped:
                raise Interrupted(loop.progress.step) from None
    finally:
        publisher.close()
        learner.close()
        client.close()
    summary = {
        "heldout_before": result.progress.heldout_before,
        "heldout_after": result.after.heldout if result.after else None,
        "train_wall_s": round(result.progress.train_wall_s, 2),
        "steps": result.progress.step,
        "seed": config.seed,
        "versions": result.progress.version,
        "heldout_tasks": heldout,
        "consumed_groups": result.progress.consumed_groups,
    }
    write_summary(run.summary, summary)
    draw_curve(run.metrics, run.curve, title=f"{config.name}, seed {config.seed}")
    if result.after is not None:
        shown = config.evaluation.samples_shown if config.evaluation else 0
        for table in before_after(result.before, result.after, shown=shown):
            console.print(table)
    console.print(
        f"{result.progress.step} steps in {result.progress.train_wall_s:.0f} s of training; curve: {run.curve}",
        highlight=False,
        soft_wrap=True,
    )
    return summary


def heldout_size(config: ExperimentConfig, client: Any) -> int:
    """How many held-out tasks to evaluate on. QuintainError where the split cannot give them."""
    evaluation = config.evaluation
    if evaluation is None:
        return 0
    size = size_of(client.tasks(evaluation.split))
    wanted = evaluation.num_tasks or size
    if wanted is None:
        raise QuintainError(
            f"evaluation.num_tasks: the split '{evaluation.split}' is endless, say how many tasks to take"
        )
    if size is not None and evaluation.num_tasks is not None and evaluation.num_tasks > size:
        raise QuintainError(f"evaluation.num_tasks: {evaluation.num_tasks} asked for, '{evaluation.split}' has {size}")
    return wanted


def check_model(config: ExperimentConfig) -> None:
    """QuintainError at once where `model.path` looks like a folder that is not there."""
    path = Path(config.model.path)
    looks_local = config.model.path.startswith((".", "/", "~")) or path.parts[:1] == ("models",)
    if path.is_dir() and not (path / "config.json").is_file():
        raise QuintainError(f"model.path: {path} has no config.json: give the folder of a transformers model")
    if looks_local and not path.is_dir():
        raise QuintainError(f"model.path: no folder '{path}': make it first (for the quickstart: make model)")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM append to; the second one ends the process's work at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _process_age_s() -> float:
    """Seconds since this process started, so that start-up counts as training time."""
    try:
        started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, AttributeError):
        return 0.0


__all__ = ["Interrupted", "check_model", "heldout_size", "train"]
