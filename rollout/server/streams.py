"""Streams of groups with a cursor: cut into answers of bounded time and size, taken up again where they were left.

Invariants:
- an answer ends with an object that has `end`; one that has not is not whole, and the client asks again from the last
  cursor it saw;
- asking from a cursor is what tells the server that everything before it has arrived: nothing is lost with a
  connection, or with a client that kept its cursor.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

import msgpack
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quintain.codec import to_json, unpack
from quintain.failure import FailureError
from quintain.frames import framed
from quintain.rollout.server.requests import wait_of
from quintain.rollout.wire import FRAMES, NDJSON
from quintain.serving.app import attended
from quintain.trajectory import Group

STREAM_BYTES: Final = 32 << 20
"""An answer with more than this ends, so that the client's next cursor says what has arrived."""
SLOW_READER_S: Final = 120.0
"""How much longer than its `wait_s` an answer may take to be read."""


class Feed(ABC):
    """Where a stream's groups come from: unless it says otherwise, all are there, and more may come later.

    Methods raise FailureError where it is gone.
    """

    @abstractmethod
    async def get(self, cursor: int) -> bytes | None:
        """The packed group at `cursor`, or None where there is none yet."""

    async def wait(self, cursor: int, until: float) -> None:  # noqa: B027
        """Return when there is a group at `cursor`, or there will never be, or at the loop's time `until`."""

    def stalled(self) -> bool:
        """Whether nothing more will come before the client says what has arrived."""
        return False

    def last(self, cursor: int) -> Mapping[str, Any]:
        """What the object that ends the answer has beside its cursor."""
        return {"end": False}


class Stream(Response):
    """The groups of `feed` from `cursor` on, as JSON lines or, if the request accepts `FRAMES`, as frames."""

    def __init__(self, feed: Feed, cursor: int, request: Request) -> None:
        self._frames = FRAMES in request.headers.get("accept", "")
        super().__init__(media_type=FRAMES if self._frames else NDJSON)
        del self.headers["content-length"]
        self._feed, self._cursor, self._wait_s = feed, cursor, wait_of(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect, TimeoutError):  # nobody is there to be told: they ask again from their cursor
            await attended(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with asyncio.timeout(self._wait_s + SLOW_READER_S):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with suppress(FailureError):  # gone meanwhile: this answer is not whole, and the next one says why
                async with aclosing(self._objects()) as objects:
                    async for item in objects:
                        await send({"type": "http.response.body", "body": item, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _objects(self) -> AsyncGenerator[bytes, None]:
        feed, cursor, sent = self._feed, self._cursor, 0
        until = asyncio.get_running_loop().time() + self._wait_s
        while sent < STREAM_BYTES:
            group = await feed.get(cursor)
            if group is None and not (sent and feed.stalled()):
                await feed.wait(cursor, until)
                group = await feed.get(cursor)
            if group is None:
                break
            cursor += 1
            item = _framed(cursor, group) if self._frames else await asyncio.to_thread(_line, cursor, group)
            sent += len(item)
            yield item
        last = {"cursor": cursor, **feed.last(cursor)}
        yield framed(msgpack.packb(last)) if self._frames else f"{to_json(last)}\n".encode()


def _framed(cursor: int, group: bytes) -> bytes:
    """The `StreamItem` of a packed group, without unpacking it."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(2)
    packer.pack("cursor")
    packer.pack(cursor)
    packer.pack("group")
    return framed(packer.bytes() + group)


def _line(cursor: int, group: bytes) -> bytes:
    return f'{{"cursor":{cursor},"group":{to_json(unpack(group, Group))}}}\n'.encode()
