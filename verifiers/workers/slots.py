"""Who gets the next free slot: at most so many at a time, groups in turns, in order within a group.

What always holds: a slot has one holder at most; nobody waits while a slot is free; whoever gives up waiting
leaves the queue, and a slot that was handed to them at that very moment goes to the next.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.verifiers.workers.queue import FairQueue

T = TypeVar("T")


class Slots(Generic[T]):
    """`slots` on offer, on one event loop."""

    def __init__(self, slots: Iterable[T]) -> None:
        self._free = list(slots)
        self._queue: FairQueue[Hashable] = FairQueue()
        self._waiting: dict[int, asyncio.Future[T]] = {}
        self._tickets = itertools.count()
        self._closed = False

    async def acquire(self, group: Hashable = None) -> T:
        """A slot, once it is this caller's turn. Raises FailureError where the slots are closed."""
        if self._closed:
            raise _closed()
        if self._free:
            return self._free.pop()
        ticket = next(self._tickets)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._queue.add(group, [ticket])
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise
        finally:
            self._waiting.pop(ticket, None)

    def release(self, slot: T) -> None:
        """Give a slot back."""
        while self._queue:
            _, tickets = self._queue.take(workers=len(self._queue))  # so many sharers take one each
            future = self._waiting.pop(tickets[0], None)
            if future is not None and not future.done():
                future.set_result(slot)
                return
        self._free.append(slot)

    def close(self) -> None:
        """Nobody gets a slot any more; those who wait learn it."""
        self._closed = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_closed())


def _closed() -> FailureError:
    return FailureError(Failure.of(FailureKind.CANCELLED, Stage.SANDBOX, "the sandbox was closed"))
