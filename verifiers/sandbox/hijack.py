"""Raw streams of a container engine: the connection on which an `exec` or an `attach` talks both ways.

The docker package reads such a stream through a buffer that may swallow its beginning, so the one request that
opens it is made here (Engine API, "Attach to a container": stream format). What always holds: nothing that the
engine sends is lost, and every failure is a QuintainError with what the engine said.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from quintain.failure import QuintainError, one_line

FRAME: Final = struct.Struct(">BxxxI")
"""The stream (1 stdout, 2 stderr) and the length of what follows."""
HEAD_BYTES: Final = 1 << 16
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Line:
    """A connection that was handed over to us."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """What comes, piece by piece, each with its stream, until the engine closes."""
        while True:
            try:
                stream, size = FRAME.unpack(await self.reader.readexactly(FRAME.size))
                yield stream, await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


def address(url: str) -> tuple[str, int]:
    """Where the engine listens: a path and 0, or a host and a port. Raises QuintainError for other kinds."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return parts.path, 0
    if parts.scheme == "tcp" and parts.hostname and parts.port:
        return parts.hostname, parts.port
    raise QuintainError(f"a container engine is at unix:///path or tcp://host:port, not {url!r}")


async def reach(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the engine. Raises QuintainError where nobody listens."""
    place, port = address(url)
    try:
        opening = asyncio.open_connection(place, port) if port else asyncio.open_unix_connection(place)
        return await asyncio.wait_for(opening, TIMEOUT_S)
    except OSError as error:  # a TimeoutError is one
        why = error.strerror or "it does not answer"
        raise QuintainError(f"no container engine listens at {url}: {why}; start it, or name another one") from None


async def connect(url: str, path: str, body: Mapping[str, Any]) -> Line:
    """The stream that POST `path` opens. Raises QuintainError where there is none."""
    reader, writer = await reach(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    try:
        writer.write(head.encode() + content)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
        status = int(answer.split(maxsplit=2)[1])
        if status not in (101, 200):
            said = (await asyncio.wait_for(reader.read(HEAD_BYTES), TIMEOUT_S)).decode(errors="replace")
            raise QuintainError(one_line(f"the container engine answered {status}: {said}"))
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
        writer.close()
        raise QuintainError(f"the container engine at {url} broke off: {error}") from None
    except BaseException:
        writer.close()
        raise
    return Line(reader, writer)
