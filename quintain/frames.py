"""Frames: how bytes on a pipe, a socket or in a file are cut into bodies: four bytes of length (big-endian), the body.

A frame that announces more than its reader takes is refused before it is read, so a peer that has lost its mind cannot
make anybody allocate without bound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = struct.Struct(">I")
MAX_FRAME_BYTES: Final = 256 << 20


class FrameError(ValueError):
    """What came is not a frame, or what should go is too long for one."""


def framed(body: bytes) -> bytes:
    """`body` as a frame. Raises FrameError."""
    _check(len(body), MAX_FRAME_BYTES)
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes, fed in pieces of any size, into bodies of at most `limit` bytes."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """What has come next."""
        self._buffer += data

    def bodies(self) -> Iterator[bytes]:
        """Those that are complete by now, each once. Raises FrameError on nonsense."""
        while (body := self.next()) is not None:
            yield body

    def next(self) -> bytes | None:
        """The next body, once it is complete. Raises FrameError on nonsense."""
        if len(self._buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._buffer)
        _check(length, self._limit)
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return body


def _check(length: int, limit: int) -> None:
    if length > limit:
        raise FrameError(f"a frame holds at most {limit:,} bytes, not {length:,}")
