"""A bounded number of slots, given out strictly in the order in which they were asked for.

What always holds: at most `capacity` slots are out; at most `queue` tickets wait; a slot that comes back goes
to the ticket that has waited longest.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Full(Exception):
    """The queue is as long as it may be."""


class Slots:
    """Slots and the tickets that wait for them. For one event loop."""

    def __init__(self, capacity: int, queue: int) -> None:
        self.capacity = capacity
        self.queue = queue
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._waiting)

    def take(self) -> asyncio.Future[None]:
        """A ticket, done once its slot is the caller's. Raises Full. Every ticket is given back, once."""
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.taken < self.capacity:
            self.taken += 1
            ticket.set_result(None)
        elif len(self._waiting) < self.queue:
            self._waiting.append(ticket)
        else:
            raise Full
        return ticket

    def give_back(self, ticket: asyncio.Future[None]) -> None:
        """Give back the slot of `ticket`, or its place in the queue."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.cancel()
            return
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.taken -= 1
