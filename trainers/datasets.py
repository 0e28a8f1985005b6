"""Data sets: their items rendered once, and in which order they are trained on.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quintain.codec import pack, unpack
from quintain.config import ExperimentConfig
from quintain.config.dataset import DatasetConfig
from quintain.config.offline import DataOptions, OfflineConfig
from quintain.failure import QuintainError, one_line
from quintain.trainers.data_items import DataItem, Form, each_item, items_of
from quintain.trainers.data_rows import rows_of, sampled_examples
from quintain.trainers.examples import Example, RenderedExamples, Renderer, RenderOptions, cut_examples
from quintain.trainers.sources import BatchSource
from quintain.trainers.streaming import ItemStream, StreamedExamples

CACHED_FILES: Final = 16
"""So many rendered data sets are kept."""
FORMAT: Final = 1
"""Raised when rendering changes: what was cached before is not read."""

ASKED: Final = ("completion_only_loss", "assistant_only_loss", "step_separator", "train_on_last_step_only")
"""The options of trainers that say how rows become tokens."""
CHOSEN: Final = ("tool_calls", "thinking", "date", "chat_template_kwargs")
"""The options of `rollout` that say how messages are shown."""

Indices = NDArray[np.int64]


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
    """Data sets as they were read: of each the items, or the examples where they are trajectories; of streams the first
    items."""

    sources: tuple[DatasetConfig, ...]
    train: list[list[DataItem] | list[Example]]
    heldout: list[list[DataItem] | list[Example]]


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a run trains on, what it is evaluated on, and what there is to say about it."""

    source: BatchSource[Sequence[Example]]
    heldout: tuple[Example, ...]
    steps: int
    notes: tuple[str, ...]


def read(config: ExperimentConfig) -> Read:
    """The rows of the run's data sets, checked. Nothing heavy is loaded. QuintainError, one line, at a mistake."""
    trainer = config.reads
    assert trainer is not None
    assert config.dataset is not None
    kind = Form(trainer.rows)
    apart = [_read(x, kind) for x in (config.evaluation and config.evaluation.dataset) or ()]
    train = [_read(x, kind, first=_held(config)) for x in config.dataset]
    if config.dataset[0].streaming and _held(config):
        apart, train = [train[0][: _held(config)]], [train[0][_held(config) :]]
        if not train[0]:
            raise QuintainError(f"evaluation.num_tasks: {config.dataset[0].label} has no rows beyond those held back")
    return Read(config.dataset, train, apart)


def _held(config: ExperimentConfig) -> int:
    """How many rows are held back; of a stream its first ones."""
    evaluation = config.evaluation if config.offline is not None else None
    return 0 if evaluation is None or evaluation.dataset is not None else evaluation.num_tasks or 0


def _read(source: DatasetConfig, kind: Form, first: int = 0) -> list[DataItem] | list[Example]:
    """All of `source`; of a stream `first` items and as many as it shuffles."""
    if source.run is not None:
        return sampled_examples(source)
    return items_of(rows_of(source), kind, most=first + source.shuffle_buffer if source.streaming else None)


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

    trainer = config.reads
    assert trainer is not None
    tokenizer = load_tokenizer(config.model.path)
    options = RenderOptions(
        max_length=_longest(config),
        judged=trainer.head == "score",
        **{name: getattr(trainer, name) for name in ASKED if hasattr(trainer, name)},
    )
    chat = json.dumps(config.rollout.model_dump(mode="json", include=set(CHOSEN)))

    def renderer() -> Renderer:
        return Renderer(tokenizer, lambda: load_chat(config), options)

    def made(part: list[Any]) -> RenderedExamples:
        if not part or isinstance(part[0], Example):
            return cut_examples(part, options)
        return rendered(part, renderer, tokenizer=tokenizer, options=options, chat=chat, check=check)

    sets = [made(part) for part in found.train]
    apart = [made(part) for part in found.heldout]
    for each in (*sets, *apart):
        _check_lost(each, trainer.max_dropped, options.max_length)
    heldout = tuple(example for each in apart for example in each.examples)
    if found.sources[0].streaming:
        first = f"data: streamed, {sum(map(len, found.train)):,} rows looked at, {len(heldout):,} held out"
        return Data(_streamed(config, found.sources, renderer()), heldout, trainer.max_steps, (first,))
    train = [list(each.examples) for each in sets]
    if count := _held(config):
        heldout, train = held_back(train, count, seed=config.seed)
    heldout, train = tuple(score(heldout)), [score(examples) for examples in train]
    units = [_units(examples, trainer) for examples in train]
    steps, size = trainer.max_steps, trainer.examples_per_step
    if isinstance(trainer, OfflineConfig) and trainer.num_train_epochs is not None:
        steps = max(1, math.ceil(trainer.num_train_epochs * sum(map(len, units)) / size))
    weights = _weights(found.sources) if found.sources[0].weight else None
    order = drawn([len(part) for part in units], weights, steps * size, seed=config.seed)
    source = ExampleSource([unit for part in units for unit in part], order, size)
    return Data(source, heldout, steps, tuple(_notes([*sets, *apart], train, heldout, options)))


def _streamed(config: ExperimentConfig, sources: Sequence[DatasetConfig], renderer: Renderer) -> StreamedExamples:
    trainer = config.reads
    assert trainer is not None
    kind = Form(trainer.rows)

    def items(source: DatasetConfig) -> Iterator[DataItem]:
        return islice(each_item(rows_of(source), kind), _held(config), None)

    streams = [
        ItemStream(partial(items, source), window=source.shuffle_buffer, seed=[config.seed, 5, number])
        for number, source in enumerate(sources)
    ]
    return StreamedExamples(
        streams,
        _weights(sources),
        renderer,
        steps=trainer.max_steps,
        size=trainer.examples_per_step,
        seed=config.seed,
        max_dropped=trainer.max_dropped,
    )


def _weights(sources: Sequence[DatasetConfig]) -> list[float]:
    return [source.weight or 1.0 for source in sources]


def _longest(config: ExperimentConfig) -> int | None:
    """Most tokens of a sequence: `max_length`, and no more than the model has positions for."""
    from transformers import AutoConfig

    assert config.reads is not None
    try:
        room = getattr(AutoConfig.from_pretrained(config.model.path).get_text_config(), "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        raise QuintainError(f"model.path: {one_line(str(error), 200)}") from None
    limits = [limit for limit in (config.reads.max_length, room) if limit is not None]
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


def _units(examples: list[Example], trainer: DataOptions) -> list[list[Example]]:
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
