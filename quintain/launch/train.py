"""`quintain train`: one run from its config to its summary.

The trainer is this process; the environment server and the rollout server are its children. Ctrl-C or SIGTERM stops
at the last whole step with a checkpoint; a second one stops at once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from quintain.config import ExperimentConfig
from quintain.config.offline import ReferenceConfig
from quintain.console import console_for
from quintain.failure import FailureError, QuintainError
from quintain.launch.checks import check_model, check_split, heldout_size, told_of_same_tasks
from quintain.launch.display import Display
from quintain.launch.model_card import hub_repository
from quintain.launch.ranks import check_ranks, follow_launched, is_follower, start_ranks
from quintain.launch.run_folder import RunFolder, from_another_run, new_run, resumed_run, settle_dtypes, with_steps
from quintain.launch.servers import Address, start_environments, start_rollout
from quintain.launch.supervisor import Supervisor, share_cores

CHECK_S = 0.5
"""How often somebody who waits for a server looks whether to go on waiting."""


def train(config: ExperimentConfig, *, resume: bool, run_dir: Path | None, as_json: bool) -> int:
    """Run the experiment; the exit code. Everything it makes is in the run's folder."""
    began = time.monotonic() - _process_age_s()
    share_cores()
    console = console_for(stderr=as_json)
    config = from_another_run(config)
    check_ranks(config, os.environ)
    check_model(config)
    if is_follower(os.environ):
        return follow_launched(config)
    hub_repository(config)
    run, config = resumed_run(config, run_dir) if resume else (new_run(config, run_dir), config)
    display = Display(console, steps=config.trainer.max_steps)
    display.say(f"run directory: {run.path}")
    how_to_go_on = f"go on with: quintain train {run.config} --resume --run-dir {run.path}"
    supervisor = Supervisor(restarts=config.rollout.restarts, report=display.say)
    with _stop_signals() as stopping:
        try:
            with display:
                summary = _train(config, run, supervisor, stopping, display, began=began, resume=resume)
        except (QuintainError, FailureError) as error:
            detail = error.failure if isinstance(error, FailureError) else error
            console.print(f"Error: {detail}", style="red", highlight=False, soft_wrap=True)
            if run.begun:
                console.print(how_to_go_on, highlight=False, soft_wrap=True)
            return 1
        finally:
            supervisor.stop()
    if isinstance(summary, int):
        console.print(f"stopped after step {summary}; {how_to_go_on}", highlight=False, soft_wrap=True)
        return 130
    if as_json:
        print(json.dumps(summary))
    return 0


def _train(
    config: ExperimentConfig,
    run: RunFolder,
    supervisor: Supervisor,
    stopping: list[int],
    display: Display,
    *,
    began: float,
    resume: bool,
) -> dict[str, Any] | int:
    """The run's summary, or the number of whole steps after which it was stopped."""
    start_ranks(supervisor, config, run)
    if config.offline is not None:
        return _train_on_data(config, run, supervisor, stopping, display, began=began, resume=resume)
    from quintain.envs.client import EnvClient
    from quintain.trainers.datasets import prepared, read

    found = read(config) if config.dataset is not None else None
    display.phase("starting the environment server")
    environments = start_environments(supervisor, config, run)
    clients = [EnvClient(environment.url, environment.token) for environment in environments]
    for played, client in zip(config.plays, clients, strict=True):
        check_split(played, client)
    heldout = [heldout_size(config, played, client) for played, client in zip(config.plays, clients, strict=True)]
    for played, client in zip(config.plays, clients, strict=True):
        if line := told_of_same_tasks(config, played, client):
            display.say(line)
    config = settle_dtypes(config, say=display.say, phase=display.phase)
    run.keep(config)
    display.phase("loading the model and starting the rollout server")
    with ThreadPoolExecutor(1) as beside:  # the rollout server comes up while the learner loads
        starting = beside.submit(start_rollout, supervisor, config, run, environments)
        try:
            from quintain.launch.session import Interrupted, TrainingRun

            check = _check(supervisor, stopping)

            def rollout() -> Address:
                while not wait([starting], timeout=CHECK_S).done:
                    check()
                return starting.result()

            shown = prepared(config, found, check=check) if found is not None else None
            for line in shown.notes if shown is not None else ():
                display.say(line)
            return TrainingRun(config, run, display, check, heldout, began, shown).train(rollout, resume=resume)
        except Interrupted as stopped:
            return stopped.step
        except BaseException:
            supervisor.stop()  # a server that is still coming up is not waited for
            raise


def _train_on_data(
    config: ExperimentConfig,
    run: RunFolder,
    supervisor: Supervisor,
    stopping: list[int],
    display: Display,
    *,
    began: float,
    resume: bool,
) -> dict[str, Any] | int:
    """As `_train`, of a trainer that samples nothing: no server is started, and the data is checked before all else."""
    from quintain.trainers.datasets import prepared, read

    display.phase("reading the data")
    found = read(config)
    config = settle_dtypes(config, say=display.say, phase=display.phase)
    from quintain.launch.session import Interrupted, TrainingRun
    from quintain.rollout.chat.load import with_date
    from quintain.trainers.loop import Stopped
    from quintain.trainers.precompute import with_reference

    config = with_date(config)
    check = _check(supervisor, stopping)
    display.phase("rendering the data")
    try:
        score = partial(with_reference, config=config, check=check) if precomputes(config) else list
        data = prepared(config, found, score=score, check=check)
    except Stopped:
        return 0
    for line in data.notes:
        display.say(line)
    config = with_steps(config, data.steps)
    display.steps = config.trainer.max_steps
    run.keep(config)
    display.phase("loading the model")
    try:
        return TrainingRun(config, run, display, check, [len(data.heldout)], began).train(data, resume=resume)
    except Interrupted as stopped:
        return stopped.step


def precomputes(config: ExperimentConfig) -> bool:
    """Whether the reference scores the data before training."""
    return isinstance(config.trainer, ReferenceConfig) and config.trainer.precompute_ref_log_probs


def _check(supervisor: Supervisor, stopping: list[int]) -> Callable[[], None]:
    """What raises QuintainError where a child is beyond help, and Stopped where somebody asked for an end."""
    from quintain.trainers.loop import Stopped

    def check() -> None:
        supervisor.check()
        if stopping:
            raise Stopped

    return check


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
