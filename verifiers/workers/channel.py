"""A socket of the pool on its event loop: whole messages in, whole frames out, without a task of its own.

Callbacks, not coroutines, because a deadline must be able to look once more, at the very moment it fires,
whether the answer has already arrived (`drain`): a busy event loop then never turns an answer that came in
time into a timeout. After `close`, and after the end of the stream, no callback comes any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from quintain.frames import FrameError, FrameReader
from quintain.verifiers.workers.wire import messages

READ_BYTES = 1 << 16


class SocketChannel:
    """One end of a socket pair: `on_message` gets each message, `on_end` the news that the peer is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop, self._sock, self._on_message, self._on_end = loop, sock, on_message, on_end
        self._reader = FrameReader()
        self._unsent = bytearray()
        self._open = True
        loop.add_reader(sock.fileno(), self.drain)

    def drain(self) -> None:
        """Hand over every message that has arrived, without waiting."""
        while self._open:
            try:
                data = self._sock.recv(READ_BYTES)
                self._reader.feed(data)
                came = list(messages(self._reader))
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, FrameError):  # a peer that talks nonsense is as good as gone
                data, came = b"", []
            for message in came:
                if self._open:
                    self._on_message(message)
            if not data:
                self._end()

    def send(self, frames: bytes, fds: Sequence[int] = ()) -> None:
        """Send `frames`, and with their first byte the file descriptors `fds`. Never blocks."""
        if not self._open:
            return
        if self._unsent and fds:
            raise BlockingIOError("the peer does not read: file descriptors cannot wait in a buffer")
        if not self._unsent:
            try:
                sent = socket.send_fds(self._sock, [frames], fds) if fds else self._sock.send(frames)
            except (BlockingIOError, InterruptedError):
                if fds:
                    raise
                sent = 0
            except OSError:
                return  # the peer is gone; the reader sees the end of the stream
            frames = frames[sent:]
            if not frames:
                return
            self._loop.add_writer(self._sock.fileno(), self._flush)
        self._unsent += frames

    def close(self) -> None:
        """Let go of the socket."""
        if not self._open:
            return
        self._open = False
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _end(self) -> None:
        self.close()
        self._on_end()
