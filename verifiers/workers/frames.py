"""Frames between the pool, its zygote and its workers: four bytes of length, then msgpack. Never pickle.

A frame longer than `MAX_FRAME_BYTES` is refused on both sides, so a worker that has lost its mind cannot make
its parent allocate without bound. Text may hold lone surrogates: models write anything.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

HEADER: Final = struct.Struct(">I")
MAX_FRAME_BYTES: Final = 64 << 20


class FrameError(ValueError):
    """What came is not a frame."""


def encode(message: Any) -> bytes:
    """`message` (dicts, lists, text, numbers) as one frame."""
    body: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES:,} bytes, this one has {len(body):,}")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Any:
    """The message in the `body` of a frame."""
    try:
        return msgpack.unpackb(body, unicode_errors="surrogatepass", strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"expected a msgpack message, got {len(body)} bytes that are none: {error}") from None


class FrameReader:
    """Cuts a stream of bytes, fed in pieces of any size, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete once `data` has come. Raises `FrameError` on nonsense."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES:,} bytes, this one announces {length:,}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(decode(bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return messages
