"""Which task comes at which place of a run.

A place p (0, 1, 2, ...) is one group. The order is a pure function of the seed and the place, so a journal that
knows which places were issued knows which prompts were used. Every epoch of a finite source visits each task once, in
an order of its own that is computed place by place: nothing is as large as the source. Of several sources each has its
share of any first n places, to within one place. A source with a curriculum is the exception: there the order follows
from what was measured too, and the journal knows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Final

from quintain.rollout.rules.curriculum import Curriculum, CurriculumRules

SEEDS: Final = 2**62
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
    curriculum: CurriculumRules | None = None


class TaskOrder:
    """Which of `splits` each place belongs to, and which of its tasks: the same each time, for one seed.

    A place goes to the split that is furthest behind its share so far; which of equals goes first follows from the
    seed. The table of what was asked for is kept, one entry a place. Where a split has a curriculum the order is told
    what was `issued` and `measured`, each in the order of places.
    """

    def __init__(self, splits: Sequence[TaskSplit], seed: int) -> None:
        self._splits, self._seed = tuple(splits), seed
        self._first = sorted(range(len(splits)), key=lambda source: derive_seed(seed, "first", source))
        self._visits = [0] * len(splits)
        self._table: list[tuple[int, int]] = []  # of each place: the split, and how often it had come before
        self._curricula = {source: made for source in range(len(splits)) if (made := self._curriculum(source))}

    @property
    def follows_what_is_measured(self) -> bool:
        """Whether some split has a curriculum."""
        return bool(self._curricula)

    def at(self, place: int) -> tuple[int, int]:
        """The number of the split that `place` belongs to, and the index of its task there (if it is issued now)."""
        source, visit = self._visit(place)
        if source in self._curricula:
            draw = derive_seed(self._seed_of(source), "pool", visit) / SEEDS
            return source, self._curricula[source].choice(draw)
        return source, self._in_turn(source, visit)

    def source(self, place: int) -> int:
        """The number of the split that `place` belongs to."""
        return self._visit(place)[0]

    def issued(self, place: int, index: int) -> None:
        """`place` was issued, with the task `index`."""
        curriculum = self._curricula.get(self.source(place))
        if curriculum is not None:
            curriculum.issued(index)

    def measured(self, place: int, index: int, rewards: Sequence[float]) -> None:
        """`place` is done with, its task was `index`; `rewards` are of the episodes that did not fail."""
        curriculum = self._curricula.get(self.source(place))
        if curriculum is not None:
            curriculum.measured(index, rewards)

    def _curriculum(self, source: int) -> Curriculum | None:
        split = self._splits[source]
        if split.curriculum is None:
            return None
        assert split.size is not None  # checked where the plan is made
        return Curriculum(split.curriculum, split.size, partial(self._in_turn, source))

    def _seed_of(self, source: int) -> int:
        return derive_seed(self._seed, "source", source) if source else self._seed

    def _in_turn(self, source: int, visit: int) -> int:
        split = self._splits[source]
        return task_index(visit, split.size, seed=self._seed_of(source), shuffle=split.shuffle)

    def _visit(self, place: int) -> tuple[int, int]:
        if len(self._splits) == 1:
            return 0, place
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
    """A seed below `SEEDS` that is a hash of `parts`: the same on every machine, different for different parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
