"""Where the rows and trajectories of a data set come from: files, hubs, and the runs of quintain.

What always holds: rows come in the order in which they are stored, each with its place, which mistakes are told with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from quintain.arrays import Ints
from quintain.config.dataset import DatasetConfig, satisfies
from quintain.failure import QuintainError, one_line
from quintain.nearest import did_you_mean
from quintain.records import read_rows
from quintain.rollout.journal.exchange import Document, about, documents
from quintain.rollout.journal.parquet import read_trajectories
from quintain.trainers.examples import Example, Mask
from quintain.trajectory import to_segments

SUFFIXES: Final = (".jsonl", ".json", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


def rows_of(source: DatasetConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set, each with its place, columns named as `source` says. QuintainError, one line."""
    assert source.path is not None
    path = Path(source.path)
    if path.exists() or source.path.endswith(SUFFIXES):
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        rows = ((f"{file} row {n}", row) for file in files for n, row in read_rows(file, "a JSON object in each line"))
    else:
        rows = ((f"{source.path} row {n}", row) for n, row in enumerate(_of_hub(source), 1))
    found = False
    for where, row in rows:
        found = True
        for theirs in source.columns.values():
            if theirs not in row:
                near = did_you_mean(theirs, list(row))
                raise QuintainError(f"{where} has no column {theirs!r}{near} (its columns: {', '.join(row)})")
        given = {theirs: name for name, theirs in source.columns.items()}
        yield where, {given.get(name, name): value for name, value in row.items()}
    if not found:
        raise QuintainError(f"dataset: {source.path} has no rows")


def _of_hub(source: DatasetConfig) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise QuintainError(
            f"dataset: {source.path} is no file; a hub's needs 'datasets': pip install datasets"
        ) from None
    try:
        yield from datasets.load_dataset(source.path, source.name, split=source.split, streaming=source.streaming)
    except Exception as error:  # the boundary: what a hub answers has many forms
        raise QuintainError(f"dataset: cannot load {source.path!r}: {one_line(str(error), 200)}") from None


def sampled_examples(source: DatasetConfig) -> list[Example]:
    """The tokens of a run's trajectories that are as `source.where` says; what was sampled is what is trained on.

    Failed trajectories are left out. QuintainError where none is left.
    """
    assert source.run is not None
    run = Path(source.run)
    if not run.exists():
        raise QuintainError(f"dataset.run: there is no {run}: give a run's folder, or a file of trajectories")
    examples: list[Example] = []
    seen = 0
    for found in _documents(run):
        seen += 1
        if not found.failed and all(satisfies(found.known.get(name), wanted) for name, wanted in source.where.items()):
            examples += [_sampled(found.where, *chain) for chain in found.chains]
    if not examples:
        raise QuintainError(f"dataset.where: none of the {seen} trajectories of {run} is as asked: {source.where}")
    return examples


def _documents(run: Path) -> Iterator[Document]:
    if run.name.endswith(SUFFIXES[:3]):
        yield from documents(run)
        return
    for stored in read_trajectories(run):
        trajectory = stored.trajectory
        chains = tuple((segment.ids, segment.mask) for segment in to_segments(trajectory))
        where = f"{stored.run} {trajectory.id}"
        yield Document(where, chains, about(stored), failed=trajectory.failure is not None)


def _sampled(where: str, ids: Ints, mask: Mask) -> Example:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    spans = tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))
    return Example(where, (ids,), (spans,), spans[0][0])
