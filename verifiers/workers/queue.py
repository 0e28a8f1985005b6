"""Which item is checked next: fair between batches, in order within one. Pure: no clock, no process.

What always holds: an item is taken at most once unless it was put back; batches with items waiting take
turns, so a batch of ten is not kept waiting by a batch of ten thousand; `take` gives as many items as
amortise a message and no more, and one at a time towards the end, so no item queues behind a slow one while a
worker stands idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

B = TypeVar("B", bound=Hashable)

MAX_CHUNK: Final = 8


class FairQueue(Generic[B]):
    """Items, numbered within their batch, of any number of batches."""

    def __init__(self) -> None:
        self._waiting: dict[B, deque[int]] = {}
        self._turns: deque[B] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, batch: B, indices: Sequence[int]) -> None:
        """Items of a batch, to be taken after those of it that wait already."""
        if not indices:
            return
        self._of(batch).extend(indices)
        self._size += len(indices)

    def put_back(self, batch: B, indices: Sequence[int]) -> None:
        """Items that were taken and not finished: they come first in their batch, in order."""
        if not indices:
            return
        self._of(batch).extendleft(reversed(indices))
        self._size += len(indices)

    def take(self, workers: int) -> tuple[B, list[int]]:
        """A chunk of the batch whose turn it is, where `workers` share the work; IndexError when empty."""
        size = max(1, min(MAX_CHUNK, self._size // (4 * workers)))
        batch = self._turns.popleft()
        waiting = self._waiting[batch]
        taken = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        self._size -= len(taken)
        if waiting:
            self._turns.append(batch)
        else:
            del self._waiting[batch]
        return batch, taken

    def drop(self, batch: B) -> None:
        """Forget what waits of `batch`."""
        if batch in self._waiting:
            self._size -= len(self._waiting.pop(batch))
            self._turns.remove(batch)

    def _of(self, batch: B) -> deque[int]:
        if batch not in self._waiting:
            self._waiting[batch] = deque()
            self._turns.append(batch)
        return self._waiting[batch]
