"""Frames on a pair of pipes: four bytes of length, then the body, one write for each frame.

What always holds: after `StdioChannel()` descriptors 0 and 1 of the process are no longer the channel (input is empty,
output goes where errors go), so nothing that tested code prints is ever taken for a frame; a body is at most
`MAX_FRAME_BYTES` long; a process whose other end is gone ends.
"""

from __future__ import annotations

import fcntl
import os
import struct

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 16 << 20
FIRST_FD = 64


class TooLong(ValueError):
    """A body that no frame can hold."""


def framed(body: bytes) -> bytes:
    """`body` as a frame. Raises TooLong."""
    if len(body) > MAX_FRAME_BYTES:
        raise TooLong(f"{len(body):,} bytes, and at most {MAX_FRAME_BYTES:,} can cross")
    return HEADER.pack(len(body)) + body


class StdioChannel:
    """The process's end: it takes over what was its standard input and output."""

    def __init__(self) -> None:
        self._in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)
        self._out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.dup2(2, 1)
        os.close(nowhere)

    def receive(self) -> bytes:
        """The next body; ends the process where there will be none."""
        (length,) = HEADER.unpack(self._read(HEADER.size))
        return self._read(length)

    def send(self, body: bytes) -> None:
        """Send `body`. Raises TooLong, with nothing sent."""
        view = memoryview(framed(body))
        while view:
            view = view[os.write(self._out, view) :]

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._in, length)
            if not part:
                os._exit(0)
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
