"""The pool's handle on its zygote: start it, ask it for workers, hear of their deaths, end it.

What always holds: `on_ready` comes at most once and before any `on_exit`; `on_gone` comes at most once, last, and only
where the zygote ended without being told to; after `close` returns, the zygote and all its workers are gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from quintain.verifiers.workers.channel import SocketChannel
from quintain.verifiers.workers.wire import encode

CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every worker of a pool is: the functions are `module:function`, importable in a fresh process."""

    check: str
    warm_up: str | None
    memory_bytes: int
    start_timeout_s: float


class ZygoteHandle:
    """One zygote process, seen from the pool's event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spec: WorkerSpec,
        *,
        on_ready: Callable[[], None],
        on_exit: Callable[[int, int | None, str], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self._loop, self._on_ready, self._on_exit, self._on_gone = loop, on_ready, on_exit, on_gone
        self._closed = False
        self.ready = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _launch(theirs.fileno())
            except OSError:
                ours.close()
                raise
        self._control = SocketChannel(loop, ours, self._on_message, lambda: self._end(self._how_it_ended()))
        self._control.send(
            encode({"kind": "init", "check": spec.check, "warm_up": spec.warm_up, "memory_bytes": spec.memory_bytes})
        )
        self._start_timer = loop.call_later(
            spec.start_timeout_s, lambda: self._end(f"not ready after {spec.start_timeout_s:g} s")
        )

    def spawn(self, token: int) -> socket.socket:
        """Have a worker forked, known as `token` from now on; the socket that leads to it, at once."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._control.send(encode({"kind": "spawn", "token": token}), [theirs.fileno()])
        return ours

    def kill(self, token: int) -> None:
        """Kill a worker, if it still lives. Its exit is reported like any other."""
        self._control.send(encode({"kind": "kill", "token": token}))

    async def close(self) -> None:
        """End the zygote and its workers, and wait until they are gone."""
        self._closed = True
        self._start_timer.cancel()
        self._control.close()
        try:
            await asyncio.to_thread(self._process.wait, CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its workers die with it
            await asyncio.to_thread(self._process.wait)

    def discard(self) -> None:
        """End everything at once, for a loop that is closed already."""
        self._closed = True
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "ready":
            self.ready = True
            self._start_timer.cancel()
            self._on_ready()
        elif kind == "error":
            self._end(message["message"])
        elif kind == "exited":
            self._on_exit(message["token"], message["status"], message["message"])

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._start_timer.cancel()
        self._control.close()
        self._process.kill()
        self._loop.run_in_executor(None, self._process.wait)  # reaps it; it is dead already
        self._on_gone(reason)

    def _how_it_ended(self) -> str:
        try:
            return f"it ended with exit code {self._process.wait(timeout=0.5)}"
        except subprocess.TimeoutExpired:
            return "it closed its connection"


def _launch(fd: int) -> subprocess.Popen[bytes]:
    # The zygote must find the same modules, wherever this process found them; -P keeps the current folder
    # out, unless it is on the path already.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "quintain.verifiers.workers.zygote", str(fd), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[fd],
        env={**os.environ, "PYTHONPATH": path},
    )
