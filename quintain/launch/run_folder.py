"""The folder of a run: where it is, what is in it, and how `--resume` finds it.

config.yaml  metrics.jsonl  summary.json  curve.png  trajectories/  journal.db  checkpoints/  logs/
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from quintain.config import ExperimentConfig, load_config, write_config
from quintain.config.section import Section, forbidden_changes
from quintain.failure import QuintainError
from quintain.files import is_draft

Say = Callable[[str], None]

CHOSEN: Final = ("dtype", "renderer", "tool_calls", "thinking", "date", "stop_ids")
"""The options of `rollout` that a run chooses for itself where they are left open."""


class RunFolder:
    """Names of what is in a run's folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.summary = path / "config.yaml", path / "metrics.jsonl", path / "summary.json"
        self.curve, self.checkpoints, self.logs = path / "curve.png", path / "checkpoints", path / "logs"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with: until then it holds a config and logs only."""
        return any(path.name not in ("config.yaml", "logs") and not is_draft(path) for path in self.path.iterdir())

    @property
    def trained(self) -> Path | None:
        """The checkpoint to go on from: the best, where it was kept, or the newest. None where there is none."""
        found = sorted(path for path in self.checkpoints.glob("step-*") if (path / "config.json").is_file())
        if not found:
            return None
        kept = json.loads((found[-1] / "trainer.json").read_text(encoding="utf-8")).get("kept")
        return next((path for path in found if kept is not None and path.name == f"step-{kept:06d}"), found[-1])

    def keep(self, config: ExperimentConfig) -> None:
        """Write the resolved config. QuintainError where it cannot be written."""
        write_config(config, self.config)


def new_run(config: ExperimentConfig, at: Path | None) -> RunFolder:
    """Make the folder of a new run and write its resolved config; one in which no run has begun is taken over.

    QuintainError where there is a run in it, or it cannot be made.
    """
    path = at or _dated(Path(config.output_dir), config.name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        run = RunFolder(path)
        if run.begun:
            raise QuintainError(f"{path} exists: give another --run-dir, or go on with it: --resume --run-dir {path}")
        run.keep(config)
    except OSError as error:
        raise QuintainError(f"cannot make the run directory {path}: {error.strerror}") from None
    return run


def resumed_run(config: ExperimentConfig, at: Path | None) -> tuple[RunFolder, ExperimentConfig]:
    """The folder to go on with, `at` or the newest of this name, and `config` with what was chosen there.

    QuintainError where the config is another one.
    """
    if at is None:
        found = sorted(Path(config.output_dir).glob(f"{config.name}-[0-9]*"))
        if not found:
            raise QuintainError(
                f"nothing to resume: no run '{config.name}-*' in {config.output_dir}; leave out --resume"
            )
        at = found[-1]
    run = RunFolder(at)
    if not run.config.is_file():
        raise QuintainError(f"nothing to resume in {at}: it has no config.yaml")
    earlier = load_config(run.config)
    config = with_choices_of(config, earlier)
    if changes := differences(earlier, config):
        raise QuintainError(f"{at} cannot go on as another run: {changes}: keep it, or start a new run")
    run.keep(config)
    return run, config


def differences(before: ExperimentConfig, now: ExperimentConfig) -> str:
    """What makes `now` another experiment than `before`; empty where nothing does."""
    return "; ".join(
        f"{change.path} was {_shown(change.before)} and is {_shown(change.now)} now{change.why and f' ({change.why})'}"
        for change in forbidden_changes(before, now)
    )


def with_choices_of(config: ExperimentConfig, earlier: ExperimentConfig) -> ExperimentConfig:
    """`config` with what `earlier` chose where it leaves the choice: number types, how messages are shown, steps."""
    model, rollout, trainer = config.model, config.rollout, config.trainer
    if not trainer.counts_steps:
        trainer = trainer.model_copy(update={"max_steps": earlier.trainer.max_steps})
    if model.compute_dtype == "auto":
        model = model.model_copy(update={"compute_dtype": earlier.model.compute_dtype})
    left = [name for name in CHOSEN if getattr(rollout, name) in ("auto", None)]
    rollout = rollout.model_copy(update={name: getattr(earlier.rollout, name) for name in left})
    return config.model_copy(update={"model": model, "rollout": rollout, "trainer": trainer})


def with_steps(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    """`config` with the number of steps that the data makes. QuintainError where they are too few."""
    trainer = config.trainer.model_copy(update={"max_steps": steps})
    if trainer.warmup_steps > steps:
        raise QuintainError(
            f"trainer.warmup_steps: {trainer.warmup_steps} are more than the {steps} steps of this data"
        )
    return config.model_copy(update={"trainer": trainer})


def from_another_run(config: ExperimentConfig) -> ExperimentConfig:
    """`config` with the checkpoint to start from where `model.path`, or a teacher or a critic, is the folder of a run:
    its best, or its newest.

    QuintainError where that run has none.
    """
    model = config.model.model_copy(update={"path": _weights_at(config.model.path, "model.path")})
    named = {name: getattr(config.trainer, name, None) for name in ("teacher", "critic")}
    found = {name: _weights_at(path, f"trainer.{name}") for name, path in named.items() if path is not None}
    return config.model_copy(update={"model": model, "trainer": config.trainer.model_copy(update=found)})


def _weights_at(path: str, field: str) -> str:
    run = RunFolder(Path(path))
    if not run.config.is_file() or (run.path / "config.json").is_file():
        return path
    if run.trained is None:
        raise QuintainError(f"{field}: the run {run.path} has no checkpoint yet: train it first")
    return str(run.trained)


def settle_dtypes(config: ExperimentConfig, *, say: Say, phase: Say) -> ExperimentConfig:
    """`config` with a number type in place of each `auto`: measured now, and said. Loads torch where there is any."""
    if "auto" in (config.model.compute_dtype, config.rollout.dtype):
        phase("loading torch")
        from quintain.rollout.engines.dtypes import settled

        config, choice = settled(config)
        say(choice)
    return config


def _shown(value: Any) -> str:
    return json.dumps(value.model_dump(mode="json") if isinstance(value, Section) else value, default=str)


def _dated(root: Path, name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = root / f"{name}-{stamp}"
    for n in range(2, 1000):
        if not path.exists():
            break
        path = root / f"{name}-{stamp}-{n}"
    return path
