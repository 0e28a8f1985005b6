"""Reads what a program writes, on the event loop, and no more than it may write.

What always holds: the bytes kept of all pipes together never exceed the limit; `on_overflow` is called at most
once, as soon as a program has written more; reading goes on then, so a program that is being killed is not
held up by a full pipe, but nothing more is kept; every descriptor is closed by `finish` or `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 1 << 16


class Capture:
    """The reading ends of pipes, each kept apart, with one limit over all. Takes over the descriptors."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fds: list[int], limit_bytes: int, on_overflow: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._kept = {fd: bytearray() for fd in fds}
        self._open = set(fds)
        self._room, self._on_overflow = limit_bytes, on_overflow
        self.overflowed = False
        for fd in fds:
            os.set_blocking(fd, False)
            loop.add_reader(fd, self._read, fd)

    def finish(self) -> list[bytes]:
        """What came on each pipe, in order, once nobody writes any more."""
        for fd in list(self._open):
            while self._read(fd):
                pass
        self.close()
        return [bytes(kept) for kept in self._kept.values()]

    def close(self) -> None:
        """Let go of the pipes. Calling it twice is allowed."""
        for fd in list(self._open):
            self._close(fd)

    def _read(self, fd: int) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._close(fd)
            return False
        self._kept[fd] += data[: self._room]
        if len(data) > self._room and not self.overflowed:
            self.overflowed = True
            self._on_overflow()
        self._room = max(0, self._room - len(data))
        return True

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.remove_reader(fd)
            os.close(fd)
