"""Environments that run in the server's own process: no isolation, nothing to start.

For tests and debuggers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from quintain.envs.workers.desk import CLOSE_ALL_S, Desk
from quintain.envs.workers.frames import Call, Reply, Request
from quintain.envs.workers.pool import Lost


class Inline:
    """A backend around a desk. Code that blocks blocks the server, and no deadline ends it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def start(self, lost: Lost) -> None:
        """Nothing to start, and nothing that could be lost."""

    async def call(self, request: Request, deadline: float) -> Reply:
        """The desk's reply."""
        return await self._desk.answer(Call(0, deadline, request))

    async def stop(self) -> None:
        """Close every environment."""
        await self._desk.host.close_all(time.monotonic() + CLOSE_ALL_S)

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def stats(self) -> Mapping[str, float]:
        """No workers."""
        return {"workers": 0, "restarts": 0}
