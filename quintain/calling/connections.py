"""HTTP connections: every httpx client of ours is made here, and those for hundreds of requests at a time.

A proxy that the environment names is for the world outside: it is never asked for a server of ours, nor for any
address of this machine.

httpx looks at every connection of a pool whenever a request begins or ends, so the cost of a request grows with the
connections there are (measured: 4 ms at 32, 15 ms at 256). Hence many small pools instead of a large one. And its
client spends a third of a request's time on cookies, redirects and proxies, which servers of ours do not have; hence
its transports without the client. What always holds: at most `most` requests are under way, begun in the order in
which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from quintain.calling.websocket import SharedSocket
from quintain.serving.listen import is_loopback

if TYPE_CHECKING:
    import httpx

PER_POOL = 4
KEEP_ALIVE_S = 30.0
"""Less than the server's, so that no request meets a connection that is just being closed."""


def http_client(url: str, token: str | None = None, *, proxied: bool = False, **options: Any) -> httpx.Client:
    """httpx's client for the server at `url`; `proxied` lets it be reached through a proxy, where it is not ours."""
    import httpx

    return httpx.Client(**_settings(url, token, proxied), **options)


def async_http_client(
    url: str, token: str | None = None, *, proxied: bool = False, **options: Any
) -> httpx.AsyncClient:
    """The same for an event loop."""
    import httpx

    return httpx.AsyncClient(**_settings(url, token, proxied), **options)


def bearer(token: str | None) -> dict[str, str]:
    """The header that says who asks."""
    return {"authorization": f"Bearer {token}"} if token else {}


def _settings(url: str, token: str | None, proxied: bool) -> dict[str, Any]:
    proxied = proxied and not is_loopback(urlsplit(url).hostname or "")
    # reading certificates takes longer than a request: only where they matter
    return {
        "base_url": url,
        "headers": bearer(token),
        "trust_env": proxied,
        "verify": proxied or url.startswith("https"),
    }


@dataclass(eq=False, slots=True)
class _Pool:
    transport: httpx.AsyncHTTPTransport
    busy: int = 0


class Connections:
    """At most `most` connections for the running event loop, and a socket beside them where there is one.

    `verify` checks the server's certificate.
    """

    def __init__(self, *, verify: bool, most: int, socket: SharedSocket | None = None) -> None:
        self.socket = socket
        self.loop = asyncio.get_running_loop()
        self.creating = asyncio.Semaphore(max(1, most // 2))
        self._verify = verify
        self._free = asyncio.Semaphore(most)
        self._pools: list[_Pool] = []

    @asynccontextmanager
    async def answer(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        """The answer to `request`, its body still to be read. Raises httpx.TransportError."""
        async with self._free:
            pool = next((pool for pool in self._pools if pool.busy < PER_POOL), None) or self._more()
            pool.busy += 1
            try:
                response = await pool.transport.handle_async_request(request)
                response.request = request
                try:
                    yield response
                finally:
                    await response.aclose()
            finally:
                pool.busy -= 1

    async def aclose(self) -> None:
        """Close them all; those of another event loop, which cannot be closed from here, are let go."""
        pools, self._pools = self._pools, []
        if self.loop is asyncio.get_running_loop():
            for pool in pools:
                await pool.transport.aclose()
            if self.socket is not None:
                await self.socket.aclose()

    def _more(self) -> _Pool:
        import httpx

        limits = httpx.Limits(max_connections=PER_POOL, keepalive_expiry=KEEP_ALIVE_S)
        self._pools.append(_Pool(httpx.AsyncHTTPTransport(verify=self._verify, limits=limits, trust_env=False)))
        return self._pools[-1]
