"""Data sets that are read while they are trained on, and never held whole.

Invariants: what stands at a place of a stream follows from its rows and the seed alone, so the batch of a step does
too, and a run that is resumed sees what it would have seen, for the price of reading up to there again; every pass over
the rows sees each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from quintain.failure import QuintainError
from quintain.trainers.data_items import DataItem
from quintain.trainers.examples import Example, Renderer

PATIENCE_ROWS = 1000
"""So many rows at least are what `max_dropped` is a share of."""


class ItemStream:
    """Items in passes over what `read` gives; of every `window` that follow each other in an order of their own."""

    def __init__(self, read: Callable[[], Iterator[DataItem]], *, window: int, seed: Sequence[int]) -> None:
        self._read, self._size, self._seed = read, window, tuple(seed)
        self._rewind()

    def _rewind(self) -> None:
        self._items = self._read()
        self._pass = self._start = 0  # the places at which the pass and the window began
        self._window: list[DataItem] = []

    def at(self, place: int) -> DataItem:
        """The item at `place`, counted through all passes. What lies between the last one asked for and it is read."""
        if place < self._start:
            self._rewind()
        while place >= self._start + len(self._window):
            self._advance(place)
        return self._window[place - self._start]

    def _advance(self, place: int) -> None:
        self._start += len(self._window)
        self._window = list(islice(self._items, self._size))
        if not self._window:  # the end of a pass: whole ones before `place` need not be read
            length = self._start - self._pass
            self._start += (place - self._start) // length * length
            self._pass, self._items = self._start, self._read()
            self._window = list(islice(self._items, self._size))
        order = np.random.default_rng([*self._seed, self._start]).permutation(len(self._window))
        self._window = [self._window[at] for at in order]


class StreamedExamples:
    """The examples of a step out of streams: `size` draws, each from the stream that chance and `weights` say.

    `figures`: of the last batch, how many items were cut, and of how many nothing was left.
    """

    def __init__(
        self,
        streams: Sequence[ItemStream],
        weights: Sequence[float],
        renderer: Renderer,
        *,
        steps: int,
        size: int,
        seed: int,
        max_dropped: float,
    ) -> None:
        self._streams, self._renderer, self._size, self._most = streams, renderer, size, max_dropped
        rng = np.random.default_rng([seed, 4])
        self._of = rng.choice(len(streams), steps * size, p=np.asarray(weights) / sum(weights))
        self._seen = self._dropped = 0
        self._step, self._batch = -1, list[Example]()
        self.figures: dict[str, float] = {}

    def batch(self, step: int) -> list[Example]:
        """The examples of `step`. QuintainError at a row that is none, and where too little is left of the rows."""
        if step != self._step:
            self._batch, self._step = self._rendered(step), step
        return self._batch

    def _rendered(self, step: int) -> list[Example]:
        start = step * self._size
        before = np.bincount(self._of[:start], minlength=len(self._streams))
        items = []
        for of in self._of[start : start + self._size]:
            items.append(self._streams[of].at(int(before[of])))
            before[of] += 1
        made = self._renderer.render(items)
        self.figures = {"rows_cut": float(made.cut), "rows_dropped": float(made.dropped)}
        self._seen, self._dropped = self._seen + len(items), self._dropped + made.dropped
        if not made.examples or self._dropped > self._most * max(self._seen, PATIENCE_ROWS):
            raise QuintainError(
                f"{made.lost}: nothing to train on is left of it, nor of {self._dropped} of {self._seen} rows in all:"
                " raise trainer.max_length, or say with trainer.max_dropped that so many may be left out"
            )
        return list(made.examples)
