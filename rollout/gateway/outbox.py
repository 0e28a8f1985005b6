"""Finished trajectories in a bounded queue: a gateway's `on_finished` that another task iterates over.

What always holds: nothing is dropped. Where nobody takes, whoever ends a session waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from quintain.trajectory import Trajectory


class Outbox:
    """At most `most` trajectories that nobody has taken yet."""

    def __init__(self, most: int = 1024) -> None:
        self._queue: asyncio.Queue[Trajectory] = asyncio.Queue(most)

    async def __call__(self, trajectory: Trajectory) -> None:
        """Put it in, waiting for room."""
        await self._queue.put(trajectory)

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Every trajectory, once and in order, without an end."""
        while True:
            yield await self._queue.get()
