"""A session in a container of its own, and the program in it that somebody talks to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.verifiers.sandbox.command import Pipes, streams
from quintain.verifiers.sandbox.container import WORK, Container, Exec
from quintain.verifiers.sandbox.interface import Execution, Limits
from quintain.verifiers.sandbox.session import Begun, OneAtATime

READ_BYTES: Final = 1 << 16


class ContainerSession(OneAtATime):
    """A container of its own. What a command leaves running is ended before the next one begins."""

    def __init__(
        self, container: Container, files: dict[str, bytes], box: Limits, on_close: Callable[[ContainerSession], None]
    ) -> None:
        """`on_close` is called once, when nothing runs in it any more."""
        super().__init__(files, box, env={"HOME": WORK})
        self.container, self._on_close = container, on_close
        self._busy = False

    @property
    def busy(self) -> bool:
        return self._busy

    async def _run(self, command: bytes, limits: Limits, stdin: bytes) -> Execution:
        async def feed(writer: asyncio.StreamWriter) -> None:
            writer.write(stdin)
            await writer.drain()

        started = await self._begin(command, limits)
        try:
            return await started.finish(feed, None)
        finally:
            self._busy = False

    async def _start(self, command: bytes, limits: Limits, pipes: Pipes) -> Begun:
        started = await self._begin(command, limits)
        return started.kill, self._relay(started, pipes)

    async def _leave(self) -> None:
        await self._end_running()
        self._on_close(self)

    async def _begin(self, command: bytes, limits: Limits) -> Exec:
        self._busy = True
        try:
            started = await self.container.begin(command, limits)
        except BaseException as error:
            self._busy = False
            if isinstance(error, QuintainError):
                raise FailureError.of(FailureKind.CRASHED, Stage.SANDBOX, str(error)) from None
            raise
        self._files = {}
        return started

    async def _relay(self, started: Exec, pipes: Pipes) -> Execution:
        """Carry between a program in the container and its channel, whose other ends are `pipes`, to its end."""
        their_stdin, their_stdout, _ = pipes.theirs
        incoming, outgoing = await streams(os.dup(their_stdin), os.dup(their_stdout))
        pipes.close()

        async def feed(writer: asyncio.StreamWriter) -> None:
            while data := await incoming.read(READ_BYTES):
                writer.write(data)
                await writer.drain()

        async def sink(data: bytes) -> None:
            with suppress(ConnectionError):  # nobody listens any more
                outgoing.write(data)
                await outgoing.drain()

        try:
            return await started.finish(feed, sink)
        finally:
            outgoing.close()
            self._busy = False
