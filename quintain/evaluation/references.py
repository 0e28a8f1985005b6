"""The references of stored trajectories' tasks.

A trajectory does not hold its task's reference, and an environment's server never tells it. It is taken from the
environment's class in this process: at the trajectory's index in its split, with the options of the run's
`config.yaml`. A task source gives the same task for the same index, so it is the reference the run was judged by,
unless the class or its data have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintain.config import ExperimentConfig, load_config
from quintain.failure import QuintainError
from quintain.rollout.journal.parquet import Stored
from quintain.task import TaskSource
from quintain.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Source:
    """Where references come from: an environment's class and its options; by default the run's."""

    spec: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None  # where trajectories do not say it
    key: str | None = None  # an entry of the reference


def references_of(run: Path, rows: Sequence[Stored], source: Source) -> list[Any]:
    """The reference of each of `rows`, None for those that failed. Raises QuintainError where it cannot be known."""
    config = None if source.spec is not None else _config_of(run)
    splits: dict[tuple[str, str], TaskSource] = {}
    found: list[Any] = []
    for row in (stored.trajectory for stored in rows):
        if row.reward is None:
            found.append(None)
            continue
        split = source.split if source.split is not None else _split_of(row)
        if (row.environment, split) not in splits:
            splits[row.environment, split] = _tasks_of(row.environment, split, source, config)
        found.append(_reference(splits[row.environment, split], split, row, source.key))
    return found


def _config_of(run: Path) -> ExperimentConfig:
    for folder in (run, run.parent, run.parent.parent):  # of a run, of its trajectories/, of a file in there
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml")
    raise QuintainError(f"{run} has no config.yaml that names its environment: give --env")


def _tasks_of(environment: str, split: str, source: Source, config: ExperimentConfig | None) -> TaskSource:
    """The tasks of `split` of what trajectories call `environment`."""
    from quintain.envs.options import bind
    from quintain.envs.registry import resolve

    spec, options = source.spec, dict(source.options)
    if config is not None:
        several = {played.label: played for played in config.plays}
        played = several.get(environment) if len(several) > 1 else config.plays[0]
        if played is None:
            raise QuintainError(f"the run has no environment {environment!r} (it has {', '.join(several)}): give --env")
        if played.name is None:
            raise QuintainError(
                f"the run's environment is a server, {played.url}, and a server never tells references:"
                " give --env with the class that it serves"
            )
        spec, options = played.name, {**played.args, **options}
    assert spec is not None  # there is a config where none was given
    return bind(resolve(spec), options).tasks(split)


def _reference(tasks: TaskSource, split: str, row: Trajectory, key: str | None) -> Any:
    try:
        reference = tasks[row.index].reference
    except IndexError:
        raise QuintainError(
            f"the environment has no task {row.index} in the split '{split}', which trajectory {row.id} is of:"
            " give --env and --arg as the run had them"
        ) from None
    if key is None:
        return reference
    if not isinstance(reference, Mapping) or key not in reference:
        raise QuintainError(f"--reference-key {key}: the reference of task {row.task} has no such entry")
    return reference[key]


def _split_of(row: Trajectory) -> str:
    split, slash, index = row.task.rpartition("/")
    if not slash or index != str(row.index):
        raise QuintainError(
            f"trajectory {row.id} is of the task {row.task!r}, which does not say its split: give --split, or leave"
            " such trajectories out"
        )
    return split
