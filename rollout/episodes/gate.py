"""The gate: places for episodes, as many as a limit that may move; whoever has the smallest key goes next.

Invariants:
- never more places are held than the limit allowed when they were given; a smaller limit takes none back;
- nor are more of one environment held than it has itself: whoever holds a place waits for nobody else's, so those who
  wait for each other at the engine (lockstep) all come to it;
- a place that becomes free goes to the oldest that waits and may have it, so late and long episodes wait no longer than
  their age says; there is no moment in between in which a place that is wanted counts as free;
- who holds places does not depend on the order in which others gave theirs back.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping


class EpisodeCount:
    """How many episodes are in flight: any of them may ask the engine to sample. Calling it gives the number."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> int:
        return self.value


Key = tuple[int, int]
"""What orders those who wait: (place of the group, member)."""


class Ticket:
    """A place, or a claim to one. Released once, whether it was granted or not."""

    def __init__(self, release: Callable[[Ticket], None], environment: str) -> None:
        self.environment = environment
        self.granted = False
        self.released = False
        self._release = release
        self._ready = asyncio.Event()

    async def wait(self) -> None:
        """Return when the place is granted."""
        await self._ready.wait()

    def release(self) -> None:
        """Give the place back, or stop waiting for one. May be repeated."""
        if not self.released:
            self.released = True
            self._release(self)

    def grant(self) -> None:
        """The gate says: it is yours."""
        self.granted = True
        self._ready.set()


class Gate:
    """Hands out places; `count` always says how many are held. `own` are those of an environment, where it has few."""

    def __init__(
        self, limit: int, count: EpisodeCount | None = None, own: Mapping[str, int | None] | None = None
    ) -> None:
        self._limit = limit
        self._count = count or EpisodeCount()
        self._own = own or {}
        self._held: Counter[str] = Counter()
        self._queues: defaultdict[str, list[tuple[Key, int, Ticket]]] = defaultdict(list)
        self._asked = 0

    @property
    def limit(self) -> int:
        """How many places there are."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._admit()

    @property
    def held(self) -> int:
        """How many places are taken."""
        return self._count.value

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not ticket.released for queue in self._queues.values() for _, _, ticket in queue)

    def ask(self, key: Key, environment: str = "") -> Ticket:
        """Queue up for a place; it is granted at once where there is one and nobody older waits for it."""
        ticket = Ticket(self._left, environment)
        self._asked += 1
        heapq.heappush(self._queues[environment], (key, self._asked, ticket))
        self._admit()
        return ticket

    def _left(self, ticket: Ticket) -> None:
        if ticket.granted:
            self._count.value -= 1
            self._held[ticket.environment] -= 1
            self._admit()

    def _admit(self) -> None:
        while self._count.value < self._limit and (able := [*filter(self._is_able, self._queues)]):
            _, _, ticket = heapq.heappop(min(self._queues[environment] for environment in able))
            self._count.value += 1
            self._held[ticket.environment] += 1
            ticket.grant()

    def _is_able(self, environment: str) -> bool:
        """Whether somebody waits for a place that the environment has."""
        queue, own = self._queues[environment], self._own.get(environment)
        while queue and queue[0][2].released:
            heapq.heappop(queue)
        return bool(queue) and (own is None or self._held[environment] < own)
