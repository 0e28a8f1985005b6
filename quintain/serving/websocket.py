"""A server's pages over one WebSocket, for a client that asks many small things at once.

A message is a msgpack list, of requests `[number, method, path, body]` one way and of answers `[number, status,
retry_after, body]` the other: as many as are there, in any order. What always holds: a request is answered by the very
page that HTTP has, with the token of the handshake, the same limits and the same body; a client that hangs up cancels
nothing that it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, NamedTuple

import msgpack
from starlette.websockets import WebSocket, WebSocketDisconnect

from quintain.codec import unpack
from quintain.failure import QuintainError
from quintain.serving.listen import MESSAGE_REQUESTS, SOCKET_PROTOCOL

UNDER_WAY: Final = 16384
"""Requests on a server's sockets that may be under way: more are read once some of them are answered."""
INVALID_DATA: Final = 1007


class PageAnswer(NamedTuple):
    """What is said to a request: JSON text, if any, and how long to wait where it may be asked again."""

    text: str
    status: int = 200
    retry_after_s: float | None = None


Ask = Callable[[str, str, bytes, Callable[[PageAnswer], None]], None]


class RequestSocket:
    """The requests of one `connection`; `ask` is given method, path, body and whom to tell the answer.

    `working` has what is being answered, here and on the server's other sockets.
    """

    def __init__(self, connection: WebSocket, ask: Ask, working: Collection[asyncio.Future[Any]]) -> None:
        self._connection, self._ask, self._working = connection, ask, working
        self._answers: list[tuple[int, int, str | None, bytes]] = []
        self._some = asyncio.Event()

    async def serve(self) -> None:
        """PageAnswer until the client hangs up, or says what is no request."""
        await self._connection.accept(SOCKET_PROTOCOL)
        writing = asyncio.create_task(self._write())
        try:
            while (said := await self._connection.receive())["type"] != "websocket.disconnect":
                for number, method, path, body in unpack(said.get("bytes") or b"", list[tuple[int, str, str, bytes]]):
                    self._ask(method, path, body, partial(self._say, number))
                await asyncio.sleep(0)  # what was begun goes first
                while len(self._working) >= UNDER_WAY:
                    await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        except QuintainError as error:
            with contextlib.suppress(WebSocketDisconnect):
                await self._connection.close(INVALID_DATA, str(error)[:100])
        finally:
            writing.cancel()

    def _say(self, number: int, answer: PageAnswer) -> None:
        wait_s = None if answer.retry_after_s is None else f"{answer.retry_after_s:g}"
        self._answers.append((number, answer.status, wait_s, answer.text.encode()))
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
