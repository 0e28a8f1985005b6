"""Which task comes at which place of a run.

A place p (0, 1, 2, ...) is one group. The order is a pure function of the seed and the place, so a journal that
knows which places were issued knows which prompts were used. Every epoch of a finite source visits each task once, in
an order of its own that is computed place by place: nothing is as large as the source. Of several sources each has its
share of any first n places, to within one place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

ROUNDS: Final = 6
"""Of the Feistel network. Four look random to anybody (Luby and Rackoff, 1988); six, for sources that are small."""


@dataclass(frozen=True, slots=True)
class TaskSplit:
    """The split `name` of `environment`: `size` tasks (None: endless), and its `weight` beside others."""

    environment: str
    name: str
    size: int | None
    shuffle: bool
    weight: float = 1.0


class TaskOrder:
    """Which of `splits` each place belongs to, and which of its tasks: the same each time, for one seed.

    A place goes to the split that is furthest behind its share so far; which of equals goes first follows from the
    seed. The table of what was asked for is kept, one entry a place.
    """

    def __init__(self, splits: Sequence[TaskSplit], seed: int) -> None:
        self._splits, self._seed = tuple(splits), seed
        self._first = sorted(range(len(splits)), key=lambda source: derive_seed(seed, "first", source))
        self._visits = [0] * len(splits)
        self._table: list[tuple[int, int]] = []  # of each place: the split, and how often it had come before

    def at(self, place: int) -> tuple[int, int]:
        """The number of the split that `place` belongs to, and the index of its task there."""
        source, visit = (0, place) if len(self._splits) == 1 else self._visit(place)
        split = self._splits[source]
        seed = derive_seed(self._seed, "source", source) if source else self._seed
        return source, task_index(visit, split.size, seed=seed, shuffle=split.shuffle)

    def _visit(self, place: int) -> tuple[int, int]:
        total = sum(split.weight for split in self._splits)
        while len(self._table) <= place:
            due = len(self._table) + 1
            behind = [due * split.weight / total - seen for split, seen in zip(self._splits, self._visits, strict=True)]
            source = max(self._first, key=behind.__getitem__)
            self._table.append((source, self._visits[source]))
            self._visits[source] += 1
        return self._table[place]


def task_index(place: int, size: int | None, *, seed: int, shuffle: bool) -> int:
    """The index in its source of the task at `place`; `size` None is an endless source, taken in order."""
    if size is None:
        return place
    if size <= 0:
        raise ValueError("the split holds no task")
    epoch, at = divmod(place, size)
    if not shuffle:
        return at
    key = derive_seed(seed, "epoch", epoch).to_bytes(8, "little")
    at = _shuffled(at, size, key)
    while at >= size:  # it walks along its cycle until it is within the source again: still one to one
        at = _shuffled(at, size, key)
    return at


def _shuffled(at: int, size: int, key: bytes) -> int:
    """Where a Feistel network takes `at`: one to one on the numbers below the least square that `size` fits in."""
    side = isqrt(size - 1) + 1
    left, right = divmod(at, side)
    for turn in range(ROUNDS):
        digest = hashlib.blake2b(right.to_bytes(8, "little"), digest_size=8, key=key, salt=bytes([turn])).digest()
        left, right = right, (left + int.from_bytes(digest, "little")) % side
    return left * side + right


def derive_seed(*parts: int | str) -> int:
    """A 62-bit seed that is a hash of `parts`: the same on every machine, different for different parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
