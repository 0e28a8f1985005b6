"""Many requests to one server of ours over one WebSocket (`quintain.serving.websocket` has the other end).

What always holds: whatever breaks the connection is a ConnectionError for every request that was under way, and the
next one opens another; a server, or a proxy before it, that has no such socket is asked over HTTP, and that is said
once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from quintain.serving.listen import LONGEST_BODY, MESSAGE_REQUESTS, SOCKET_PATH, SOCKET_PROTOCOL

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

OPEN_S: Final = 10.0
CLOSE_S: Final = 1.0
WITHOUT_S: Final = 60.0
"""How long a server that has no socket is not asked for one again."""
PASSING: Final = frozenset({429, 502, 503})


class Answered(NamedTuple):
    """What a server said to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class SharedSocket:
    """The socket of the server at `url` for the running event loop; `headers` say who asks."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._headers = url, headers
        self._connection: ClientConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._without_until = -math.inf
        self._said = False
        self._number = 0
        self._asked: dict[int, asyncio.Future[Answered]] = {}
        self._requests: list[tuple[int, str, str, bytes]] = []
        self._some = asyncio.Event()

    async def ask(self, method: str, path: str, body: str | None) -> Answered | None:
        """The answer, or None where this must be asked over HTTP. Raises ConnectionError."""
        if body is not None and len(body) > LONGEST_BODY:
            return None
        if self._connection is None and not await self._opened():
            return None
        self._number += 1
        number = self._number
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._requests.append((number, method, path, (body or "").encode()))
        self._some.set()
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    async def aclose(self) -> None:
        """Hang up. The next request opens another connection."""
        for task in (self._opening, self._serving):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def _opened(self) -> bool:
        """Whether there is a connection now."""
        if time.monotonic() < self._without_until:
            return False
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        await asyncio.wait({opening})
        if opening.cancelled():
            raise ConnectionError("the connection was closed")
        opening.result()
        return self._connection is not None

    async def _open(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, WebSocketException

        class Connect(connect):
            """Follows nobody elsewhere: the token is for this server."""

            def process_redirect(self, exc: Exception) -> Exception:
                return exc

        secure: dict[str, Any] = {}
        if self._url.startswith("https"):
            import httpx

            secure = {"ssl": httpx.create_ssl_context(trust_env=False)}
        try:
            connection = await Connect(
                self._url.replace("http", "ws", 1) + SOCKET_PATH,
                additional_headers=self._headers,
                subprotocols=[SOCKET_PROTOCOL],  # type: ignore[list-item]
                compression=None,
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                max_size=None,
                proxy=None,
                **secure,
            )
        except TimeoutError:
            self._go_without(f"no answer within {OPEN_S:g} s")
        except InvalidStatus as error:
            if error.response.status_code in PASSING:
                raise ConnectionError(str(error)) from None
            self._go_without(str(error))
        except WebSocketException as error:
            self._go_without(str(error))
        except OSError as error:
            raise ConnectionError(str(error)) from None
        else:
            if connection.subprotocol != SOCKET_PROTOCOL:
                await connection.close()
                self._go_without("another protocol is spoken there")
                return
            self._connection = connection
            self._serving = asyncio.create_task(self._serve(connection))

    def _go_without(self, why: str) -> None:
        self._without_until = time.monotonic() + WITHOUT_S
        if not self._said:
            self._said = True
            log.warning("%s has no WebSocket (%s): it is asked over HTTP, which is slower", self._url, why)

    async def _serve(self, connection: ClientConnection) -> None:
        """Pass requests and answers on until the connection ends."""
        from websockets.exceptions import ConnectionClosed

        writing, why = asyncio.create_task(self._write(connection)), "the connection was closed"
        try:
            async for message in connection:
                for number, status, retry_after, body in msgpack.unpackb(message):
                    answer = self._asked.get(number)
                    if answer is not None and not answer.done():
                        headers = {} if retry_after is None else {"retry-after": retry_after}
                        answer.set_result(Answered(status, headers, body))
        except (ConnectionClosed, ValueError, TypeError) as error:
            why = str(error)
        finally:
            self._connection = None
            self._requests.clear()
            writing.cancel()
            asked, self._asked = self._asked, {}
            for answer in asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionError(why))
            await connection.close()

    async def _write(self, connection: ClientConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                await self._some.wait()
                self._some.clear()
                requests, self._requests = self._requests, []
                for start in range(0, len(requests), MESSAGE_REQUESTS):
                    await connection.send(msgpack.packb(requests[start : start + MESSAGE_REQUESTS]))
        except ConnectionClosed:
            pass  # whoever reads has noticed too
