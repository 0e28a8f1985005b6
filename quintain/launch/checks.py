"""What a run is checked for before anything heavy loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from quintain.config import EnvironmentConfig, ExperimentConfig
from quintain.failure import FailureError, QuintainError
from quintain.task import size_of

LOOKED_AT: Final = 256
"""Tasks of a split, where two are compared."""


def check_model(config: ExperimentConfig) -> None:
    """QuintainError at once where `model.path` looks like a folder that is not there."""
    path = Path(config.model.path)
    looks_local = config.model.path.startswith((".", "/", "~")) or path.parts[:1] == ("models",)
    if path.is_dir() and not (path / "config.json").is_file():
        raise QuintainError(f"model.path: {path} has no config.json: give the folder of a transformers model")
    if looks_local and not path.is_dir():
        raise QuintainError(f"model.path: no folder '{path}': make it first (for the quickstart: make model)")


def check_split(environment: EnvironmentConfig, client: Any) -> None:
    """QuintainError where the environment has no tasks to train on."""
    size = _size(client, environment.split, "environment.split")
    if size == 0:
        raise QuintainError(f"environment.split: '{environment.split}' has no tasks: choose another")
    if environment.curriculum is not None:
        environment.curriculum.size(environment.split, size)


def heldout_size(config: ExperimentConfig, environment: EnvironmentConfig, client: Any) -> int:
    """How many held-out tasks of `environment` to evaluate on. QuintainError where the split cannot give them."""
    evaluation = config.evaluation
    if evaluation is None:
        return 0
    split = environment.heldout_split or evaluation.split
    size = _size(client, split, "evaluation.split")
    wanted = evaluation.num_tasks or size
    if wanted is None:
        raise QuintainError(f"evaluation.num_tasks: the split '{split}' is endless, say how many tasks to take")
    if size is not None and wanted > size:
        raise QuintainError(f"evaluation.num_tasks: {wanted} asked for, '{split}' has {size}")
    if wanted == 0:
        raise QuintainError(f"evaluation.split: '{split}' has no tasks: choose another, or leave it out")
    return wanted


def told_of_same_tasks(config: ExperimentConfig, environment: EnvironmentConfig, client: Any) -> str | None:
    """A line about tasks that are held out and trained on, or None where those that are looked at are apart."""
    if config.evaluation is None:
        return None
    trained, heldout = environment.split, environment.heldout_split or config.evaluation.split
    first = _first(client, heldout)
    if not (both := first & _first(client, trained)):
        return None
    return (
        f"{environment.label}: {len(both)} of the first {len(first)} tasks of the held-out split '{heldout}' are in"
        f" '{trained}' too: the held-out figure is also of what was trained on"
    )


def _first(client: Any, split: str) -> set[tuple[Any, ...]]:
    """The first tasks of `split`, as far as a policy can tell them apart."""
    source = client.tasks(split)
    size = size_of(source)
    tasks = (source[i] for i in range(LOOKED_AT if size is None else min(size, LOOKED_AT)))
    return {(task.id, task.prompt, task.seed) for task in tasks}


def _size(client: Any, split: str, field: str) -> int | None:
    """The number of tasks in `split`, None where it is endless. QuintainError where the environment refuses it."""
    try:
        return size_of(client.tasks(split))
    except FailureError as error:
        raise QuintainError(f"{field}: {error.failure.message}") from None
