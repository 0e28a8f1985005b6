"""Data sets: where rows and trajectories come from, rendered once, and in which order they are trained on.

Invariants: the batch of a step follows from data, options and seed alone, so a run that is resumed sees what it would
have seen; in every pass over a data set each of its examples is seen once; what is cached was made of the very same
rows, tokenizer and options.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quintain.codec import pack, unpack
from quintain.config import ExperimentConfig
from quintain.config.dataset import DatasetConfig, satisfies
from quintain.config.offline import OfflineConfig
from quintain.failure import QuintainError, one_line
from quintain.nearest import did_you_mean
from quintain.records import read_rows
from quintain.rollout.journal.parquet import Stored, read_trajectories
from quintain.trainers.data_items import DataItem, Form, items_of
from quintain.trainers.examples import Example, RenderedExamples, Renderer, RenderOptions, cut_examples
from quintain.trajectory import to_segments

SUFFIXES: Final = (".jsonl", ".json", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
CACHED_FILES: Final = 16
"""So many rendered data sets are kept."""
FORMAT: Final = 1
"""Raised when rendering changes: what was cached before is not read."""

ASKED: Final = ("completion_only_loss", "assistant_only_loss", "step_separator", "train_on_last_step_only")
"""The options of trainers that say how rows become tokens."""
CHOSEN: Final = ("tool_calls", "thinking", "date", "chat_template_kwargs")
"""The options of `rollout` that say how messages are shown."""

Indices = NDArray[np.int64]


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


def _of_hub(source: DatasetConfig) -> Iterable[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise QuintainError(
            f"dataset: {source.path} is no file; a hub's needs 'datasets': pip install datasets"
        ) from None
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:  # the boundary: what a hub answers has many forms
        raise QuintainError(f"dataset: cannot load {source.path!r}: {one_line(str(error), 200)}") from None
    return rows


def sampled_examples(source: DatasetConfig) -> list[Example]:
    """The tokens of a run's trajectories that are as `source.where` says; what was sampled is what is trained on.

    Failed trajectories are left out. QuintainError where none is left.
    """
    assert source.run is not None
    run = Path(source.run)
    if not run.exists():
        raise QuintainError(f"dataset.run: there is no {run}: give a run's folder, or a Parquet file of trajectories")
    folder = run / "trajectories" if (run / "trajectories").is_dir() else run
    examples: list[Example] = []
    seen = 0
    for stored in read_trajectories(folder):
        seen += 1
        if stored.trajectory.failure is None and _wanted(source, stored):
            examples += _sampled(stored)
    if not examples:
        raise QuintainError(f"dataset.where: none of the {seen} trajectories of {run} is as asked: {source.where}")
    return examples


def _wanted(source: DatasetConfig, stored: Stored) -> bool:
    trajectory = stored.trajectory
    known = {
        "reward": trajectory.reward,
        "environment": trajectory.environment,
        "verdict": trajectory.info.get("outcome"),
        "turns": len(trajectory.turns),
        "tokens": trajectory.output_tokens,
        "step": stored.step,
        "ending": str(trajectory.ending),
        **{f"rewards.{name}": value for name, value in trajectory.rewards.items()},
    }
    return all(satisfies(known.get(name), wanted) for name, wanted in source.where.items())


def _sampled(stored: Stored) -> Iterator[Example]:
    for segment in to_segments(stored.trajectory):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], segment.mask.astype(np.int8), [0]])))
        spans = tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))
        yield Example(f"{stored.run} {stored.trajectory.id}", (segment.ids,), (spans,), spans[0][0])


def rendered(
    items: Sequence[DataItem],
    renderer: Callable[[], Renderer],
    *,
    tokenizer: Any,
    options: RenderOptions,
    chat: str,
    check: Callable[[], None] = lambda: None,
) -> RenderedExamples:
    """`items` as examples, from the cache where the same have been rendered before.

    `chat` says which options the chat layer has. What cannot be kept is rendered again the next time.
    """
    file = cache_folder("rendered") / f"{_key(items, tokenizer, options, chat)}.msgpack"
    try:
        found = unpack(file.read_bytes(), RenderedExamples)
        os.utime(file)
        return found
    except (OSError, QuintainError):
        made = renderer().render(items, check=check)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_bytes(pack(made))
        draft.replace(file)
        for old in sorted(file.parent.glob("*.msgpack"), key=lambda path: -path.stat().st_mtime)[CACHED_FILES:]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # a disk that is full or read-only costs time, nothing else
    return made


def cache_folder(of: str) -> Path:
    """Where what was computed `of` data sets is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintain" / of


def _key(items: Sequence[DataItem], tokenizer: Any, options: RenderOptions, chat: str) -> str:
    """What the rendering follows from, hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    about = [FORMAT, words, tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token, asdict(options), chat]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True, default=dict).encode())
    return digest.hexdigest()[:32]


# The order


def drawn(sizes: Sequence[int], weights: Sequence[float] | None, count: int, *, seed: int) -> Indices:
    """[count]: which example each draw takes, counted through all data sets of `sizes`.

    Without weights the data sets are one. With weights each draw chooses a data set, whose own passes are whole.
    """
    if weights is None:
        return _passes(sum(sizes), count, np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    of = rng.choice(len(sizes), count, p=np.asarray(weights) / sum(weights))
    out, before = np.empty(count, np.int64), 0
    for number, size in enumerate(sizes):
        mine = np.flatnonzero(of == number)
        out[mine] = before + _passes(size, len(mine), np.random.default_rng([seed, 2, number]))
        before += size
    return out


def _passes(size: int, count: int, rng: np.random.Generator) -> Indices:
    """[count]: passes over `size` examples, each in an order of its own."""
    orders = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate([np.empty(0, np.int64), *orders])[:count]


def packed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The indices of `lengths` in bins of at most `capacity`: best-fit decreasing; what is longer is alone.

    Each goes, longest first, where least room is left over.
    """
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # by how much room is left: which bins
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, lengths[index])
        if at == len(rooms):
            bins.append([])
            number, left = len(bins) - 1, max(0, capacity - lengths[index])
        else:
            found = rooms[at]
            number, left = room[found].pop(), found - lengths[index]
            if not room[found]:
                del rooms[at]
        bins[number].append(index)
        if not room.setdefault(left, []):
            insort(rooms, left)
        room[left].append(number)
    return bins


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Data sets as they were read: of each the items, or the examples where they are trajectories."""

    sources: tuple[DatasetConfig, ...]
    train: list[list[DataItem] | list[Example]]
    heldout: list[list[DataItem] | list[Example]]


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a run trains on, what it is evaluated on, and what there is to say about it."""

    source: ExampleSource
    heldout: tuple[Example, ...]
    steps: int
    notes: tuple[str, ...]


def read(config: ExperimentConfig) -> Read:
    """The rows of the run's data sets, checked. Nothing heavy is loaded. QuintainError, one line, at a mistake."""
    trainer, evaluation = config.offline, config.evaluation
    assert trainer is not None
    assert config.dataset is not None
    kind = Form(trainer.rows)
    apart = (evaluation and evaluation.dataset) or ()
    return Read(config.dataset, [_read(x, kind) for x in config.dataset], [_read(x, kind) for x in apart])


def _read(source: DatasetConfig, kind: Form) -> list[DataItem] | list[Example]:
    return sampled_examples(source) if source.run is not None else items_of(rows_of(source), kind)


def prepared(
    config: ExperimentConfig,
    found: Read,
    *,
    score: Callable[[Sequence[Example]], list[Example]] = list,
    check: Callable[[], None] = lambda: None,
) -> Data:
    """`found` as tokens of the model's, with the order of a run. Loads the tokenizer. QuintainError.

    `score` adds the reference's log-probabilities, where they are computed before training.
    """
    from quintain.rollout.chat.load import load_chat, load_tokenizer

    trainer, evaluation = config.offline, config.evaluation
    assert trainer is not None
    tokenizer = load_tokenizer(config.model.path)
    options = RenderOptions(
        max_length=_longest(config),
        judged=trainer.head == "score",
        **{name: getattr(trainer, name) for name in ASKED if hasattr(trainer, name)},
    )
    chat = json.dumps(config.rollout.model_dump(mode="json", include=set(CHOSEN)))

    def made(part: list[Any]) -> RenderedExamples:
        if not part or isinstance(part[0], Example):
            return cut_examples(part, options)
        return rendered(
            part,
            lambda: Renderer(tokenizer, lambda: load_chat(config), options),
            tokenizer=tokenizer,
            options=options,
            chat=chat,
            check=check,
        )

    sets = [made(part) for part in found.train]
    apart = [made(part) for part in found.heldout]
    for each in (*sets, *apart):
        _check_lost(each, trainer.max_dropped, options.max_length)
    heldout = tuple(example for each in apart for example in each.examples)
    train = [list(each.examples) for each in sets]
    if evaluation is not None and not found.heldout:
        heldout, train = held_back(train, evaluation.num_tasks or 0, seed=config.seed)
    heldout, train = tuple(score(heldout)), [score(examples) for examples in train]
    units = [_units(examples, trainer) for examples in train]
    steps = trainer.max_steps
    if trainer.num_train_epochs is not None:
        steps = max(1, math.ceil(trainer.num_train_epochs * sum(map(len, units)) / trainer.train_batch_size))
    weights = [source.weight or 1.0 for source in found.sources] if found.sources[0].weight else None
    order = drawn([len(part) for part in units], weights, steps * trainer.train_batch_size, seed=config.seed)
    source = ExampleSource([unit for part in units for unit in part], order, trainer.train_batch_size)
    return Data(source, heldout, steps, tuple(_notes([*sets, *apart], train, heldout, options)))


def _longest(config: ExperimentConfig) -> int | None:
    """Most tokens of a sequence: `max_length`, and no more than the model has positions for."""
    from transformers import AutoConfig

    assert config.offline is not None
    try:
        room = getattr(AutoConfig.from_pretrained(config.model.path).get_text_config(), "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        raise QuintainError(f"model.path: {one_line(str(error), 200)}") from None
    limits = [limit for limit in (config.offline.max_length, room) if limit is not None]
    return min(limits, default=None)


def _check_lost(each: RenderedExamples, most: float, limit: int | None) -> None:
    total = len(each.examples) + each.dropped
    if each.dropped > most * total:
        raise QuintainError(
            f"{each.lost}: nothing to train on is left within {limit} tokens, nor of {each.dropped} of {total} rows in"
            " all: raise trainer.max_length, or say with trainer.max_dropped that so many may be left out"
        )


def held_back(sets: list[list[Example]], count: int, *, seed: int) -> tuple[tuple[Example, ...], list[list[Example]]]:
    """(`count` examples of all `sets`, the others). QuintainError where none would be left."""
    total = sum(map(len, sets))
    if count >= total:
        raise QuintainError(f"evaluation.num_tasks: {count} rows held back of {total} leave nothing to train on")
    hidden = set(np.random.default_rng([seed, 3]).choice(total, count, replace=False).tolist())
    places = iter(range(total))
    marked = [[(next(places) in hidden, example) for example in part] for part in sets]
    heldout = tuple(example for part in marked for is_hidden, example in part if is_hidden)
    return heldout, [[example for is_hidden, example in part if not is_hidden] for part in marked]


def _units(examples: list[Example], trainer: OfflineConfig) -> list[list[Example]]:
    """What a step takes a number of: examples, or bins of them."""
    if not getattr(trainer, "packing", False):
        return [[example] for example in examples]
    assert trainer.max_length is not None
    bins = packed([example.tokens for example in examples], trainer.max_length)
    return [[examples[at] for at in each] for each in bins]


def _notes(
    made: Sequence[RenderedExamples],
    train: Sequence[Sequence[Example]],
    heldout: Sequence[Example],
    options: RenderOptions,
) -> Iterator[str]:
    rows, tokens = sum(map(len, train)), sum(example.tokens for part in train for example in part)
    yield f"data: {rows:,} rows of {tokens:,} tokens to train on, {len(heldout):,} held out"
    cut, dropped = sum(each.cut for each in made), sum(each.dropped for each in made)
    if cut or dropped:
        yield f"data: {cut:,} rows were cut at {options.max_length} tokens; of {dropped:,} rows nothing is left"


class ExampleSource:
    """The examples of a step: `units` are bins of examples (one each unless packed), of which a step takes `size`."""

    def __init__(self, units: Sequence[Sequence[Example]], order: Indices, size: int) -> None:
        self._units, self._order, self._size = units, order, size

    def batch(self, step: int) -> list[Example]:
        """The examples of `step`."""
        chosen = self._order[step * self._size : (step + 1) * self._size]
        return [example for at in chosen for example in self._units[at]]
