"""HTTP connections for hundreds of requests at a time.

httpx looks at every connection of a pool whenever a request begins or ends, so the cost of a request grows with the
connections there are (measured: 4 ms at 32, 15 ms at 256). Hence many small pools instead of a large one. What
always holds: at most `most` requests are under way, begun in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

PER_POOL = 4
KEEP_ALIVE_S = 30.0
"""Less than the server's, so that no request meets a connection that is just being closed."""


@dataclass(eq=False, slots=True)
class _Pool:
    client: httpx.AsyncClient
    busy: int = 0


class Connections:
    """At most `most` connections with httpx's client `settings`, for the running event loop."""

    def __init__(self, settings: Mapping[str, Any], most: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.creating = asyncio.Semaphore(max(1, most // 2))
        self._settings = dict(settings)
        self._free = asyncio.Semaphore(most)
        self._pools: list[_Pool] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request."""
        async with self._free:
            pool = next((pool for pool in self._pools if pool.busy < PER_POOL), None) or self._more()
            pool.busy += 1
            try:
                yield pool.client
            finally:
                pool.busy -= 1

    async def aclose(self) -> None:
        """Close them all; those of another event loop, which cannot be closed from here, are let go."""
        pools, self._pools = self._pools, []
        if self.loop is asyncio.get_running_loop():
            for pool in pools:
                await pool.client.aclose()

    def _more(self) -> _Pool:
        import httpx

        limits = httpx.Limits(max_connections=PER_POOL, keepalive_expiry=KEEP_ALIVE_S)
        self._pools.append(_Pool(httpx.AsyncClient(limits=limits, **self._settings)))
        return self._pools[-1]
