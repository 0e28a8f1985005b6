"""Who is next: items of groups that take turns (`FairQueue`), and slots that are given out in that order (`Slots`).

What always holds: an item is taken at most once unless it was put back; groups with items waiting take turns, so ten
items are not kept waiting by ten thousand of somebody else; items of one group go in order. A slot has one holder at
most; nobody waits while a slot is free; whoever gives up waiting leaves the queue, and a slot that was handed to them
at that very moment goes to the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from quintain.failure import Failure, FailureError

G = TypeVar("G", bound=Hashable)
T = TypeVar("T")


class FairQueue(Generic[G, T]):
    """Items of any number of groups. Pure: no clock, no event loop."""

    def __init__(self) -> None:
        self._waiting: dict[G, deque[T]] = {}
        self._turns: deque[G] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, group: G, items: Iterable[T]) -> None:
        """Items of a group, to be taken after those of it that wait already."""
        for item in items:
            self._of(group).append(item)
            self._size += 1

    def put_back(self, group: G, items: Sequence[T]) -> None:
        """Items that were taken and not finished: they come first in their group, in order."""
        for item in reversed(items):
            self._of(group).appendleft(item)
            self._size += 1

    def take(self, most: int = 1) -> tuple[G, list[T]]:
        """Items of the group whose turn it is, at least one; IndexError when empty."""
        group = self._turns.popleft()
        waiting = self._waiting[group]
        taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        self._size -= len(taken)
        if waiting:
            self._turns.append(group)
        else:
            del self._waiting[group]
        return group, taken

    def remove(self, group: G, item: T) -> None:
        """Forget one item that waits."""
        self._waiting[group].remove(item)
        self._size -= 1
        if not self._waiting[group]:
            self.drop(group)

    def drop(self, group: G) -> None:
        """Forget what waits of `group`."""
        if group in self._waiting:
            self._size -= len(self._waiting.pop(group))
            self._turns.remove(group)

    def _of(self, group: G) -> deque[T]:
        if group not in self._waiting:
            self._waiting[group] = deque()
            self._turns.append(group)
        return self._waiting[group]


class Full(Exception):
    """The queue is as long as it may be."""


class Slots(Generic[T]):
    """`slots` on offer and the tickets that wait for them, at most `queue`, on one event loop."""

    def __init__(self, slots: Iterable[T], *, queue: int | None = None) -> None:
        self._free = list(slots)
        self.capacity = len(self._free)
        self._bound = queue
        self._queue: FairQueue[Hashable, asyncio.Future[T]] = FairQueue()
        self._waiting: dict[asyncio.Future[T], Hashable] = {}  # and the groups they wait in
        self._closed: Failure | None = None

    @property
    def taken(self) -> int:
        """How many slots are out."""
        return self.capacity - len(self._free)

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._waiting)

    def take(self, group: Hashable = None) -> asyncio.Future[T]:
        """A ticket, done once its slot is the caller's. Raises Full. Every ticket is given back, once."""
        ticket: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            raise FailureError(self._closed)
        if self._free:
            ticket.set_result(self._free.pop())
        elif self._bound is not None and self.waiting >= self._bound:
            raise Full
        else:
            self._waiting[ticket] = group
            self._queue.add(group, [ticket])
        return ticket

    def give_back(self, ticket: asyncio.Future[T]) -> None:
        """Give back the slot of `ticket`, or its place in the queue."""
        if ticket in self._waiting:
            self._queue.remove(self._waiting.pop(ticket), ticket)
            ticket.cancel()
        elif not ticket.cancelled() and ticket.exception() is None:
            self.release(ticket.result())

    async def acquire(self, group: Hashable = None) -> T:
        """A slot, once it is this caller's turn. Raises FailureError where the slots are closed."""
        ticket = self.take(group)
        try:
            return await ticket
        except asyncio.CancelledError:
            self.give_back(ticket)
            raise

    def release(self, slot: T) -> None:
        """Give a slot back."""
        while self._queue:
            _, (ticket,) = self._queue.take()
            del self._waiting[ticket]
            if not ticket.done():  # or whoever waits has been cancelled, and does not know it yet
                ticket.set_result(slot)
                return
        self._free.append(slot)

    def close(self, why: Failure) -> None:
        """Nobody gets a slot any more; those who wait learn `why`."""
        self._closed = why
        for ticket in self._waiting:
            if not ticket.done():
                ticket.set_exception(FailureError(why))
