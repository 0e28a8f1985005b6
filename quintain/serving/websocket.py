"""A server's pages over one WebSocket, for a client that asks many small things at once.

A message is a msgpack list, of requests `[number, method, path, body]` one way and of answers `[number, status,
retry_after, body]` the other: as many as are there, in any order. What always holds: a request is answered by the very
page that HTTP has, with the token of the handshake, the same limits and the same body; a client that hangs up cancels
nothing that it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import msgpack
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from quintain.codec import unpack
from quintain.failure import QuintainError
from quintain.serving.listen import MESSAGE_REQUESTS, SOCKET_PROTOCOL

UNDER_WAY: Final = 16384
"""Requests on a server's sockets that may be under way: more are read once some of them are answered."""
INVALID_DATA: Final = 1007

Respond = Callable[[dict[str, Any], Callable[[], Awaitable[Any]]], Awaitable[Response]]


class RequestSocket:
    """The requests of one `connection`; `respond` gives the answer to an ASGI scope and its receive.

    `working` has what is being answered, here and on the server's other sockets.
    """

    def __init__(self, connection: WebSocket, respond: Respond, working: set[asyncio.Task[None]]) -> None:
        self._connection, self._respond, self._working = connection, respond, working
        self._answers: list[tuple[int, int, str | None, bytes]] = []
        self._some = asyncio.Event()

    async def serve(self) -> None:
        """Answer until the client hangs up, or says what is no request."""
        await self._connection.accept(SOCKET_PROTOCOL)
        writing = asyncio.create_task(self._write())
        try:
            while (said := await self._connection.receive())["type"] != "websocket.disconnect":
                for number, method, path, body in unpack(said.get("bytes") or b"", list[tuple[int, str, str, bytes]]):
                    task = asyncio.create_task(self._answer(number, method, path, body))
                    self._working.add(task)
                    task.add_done_callback(self._working.discard)
                while len(self._working) >= UNDER_WAY:
                    await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        except QuintainError as error:
            with contextlib.suppress(WebSocketDisconnect):
                await self._connection.close(INVALID_DATA, str(error)[:100])
        finally:
            writing.cancel()

    async def _answer(self, number: int, method: str, path: str, body: bytes) -> None:
        path, _, query = path.partition("?")
        path = unquote(path)
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": self._connection.scope["headers"],
            "state": {},
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        response = await self._respond(scope, receive)
        wait_s = response.headers.get("retry-after") if response.status_code >= 400 else None
        self._answers.append((number, response.status_code, wait_s, bytes(response.body)))
        self._some.set()

    async def _write(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            answers, self._answers = self._answers, []
            for start in range(0, len(answers), MESSAGE_REQUESTS):
                try:
                    await self._connection.send_bytes(msgpack.packb(answers[start : start + MESSAGE_REQUESTS]))
                except (WebSocketDisconnect, RuntimeError):  # nobody waits for it any longer
                    return
