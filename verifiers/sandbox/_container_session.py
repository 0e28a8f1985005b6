"""A session in a container of its own, and the program in it that somebody talks to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.verifiers.sandbox._command import Pipes, encode
from quintain.verifiers.sandbox._container import WORK, Container, Exec
from quintain.verifiers.sandbox.interface import Execution, Limits, Program, Running, Session, check_files
from quintain.verifiers.sandbox.outcome import broken

READ_BYTES: Final = 1 << 16


class ContainerSession(Session):
    """A container of its own. What a command leaves running is ended before the next one begins."""

    def __init__(
        self,
        container: Container,
        files: dict[str, bytes],
        box: Limits,
        on_close: Callable[[ContainerSession], None],
    ) -> None:
        """`on_close` is called once, when nothing runs in it any more."""
        self.container = container
        self._on_close = on_close
        self._files = files
        self._box = box
        self._running: _Running | None = None
        self._busy = False
        self._closed = False

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Execution:
        async def feed(writer: asyncio.StreamWriter) -> None:
            writer.write(stdin)
            await writer.drain()

        try:
            started = await self._begin(program, files, limits)
        except FailureError as error:
            return broken(error.failure.message)
        try:
            return await started.finish(feed, None)
        finally:
            self._rest()

    async def start(
        self, program: Program, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Running:
        pipes, reader, writer = await Pipes.talking()
        try:
            started = await self._begin(program, files, limits)
        except BaseException:
            pipes.close()
            writer.close()
            raise
        self._running = _Running(started, pipes, reader, writer, self._rest)
        return self._running

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._running is not None:
            self._running.kill()
            await self._running.wait()
        self._on_close(self)

    async def _begin(self, program: Program, files: Mapping[str, bytes] | None, limits: Limits | None) -> Exec:
        if self._closed:
            raise QuintainError("this session is closed: open another")
        if self._busy:
            raise QuintainError("a session runs one command at a time: wait for the one that runs")
        limits = limits or self._box
        program = Program(program.argv, program.source, {"HOME": WORK} | dict(program.env))
        command = encode(program, self._files | check_files(files), limits, self._box)
        self._busy = True
        try:
            started = await self.container.begin(command, limits)
        except BaseException as error:
            self._busy = False
            if isinstance(error, QuintainError):
                raise FailureError(Failure.of(FailureKind.CRASHED, Stage.SANDBOX, str(error))) from None
            raise
        self._files = {}
        return started

    def _rest(self) -> None:
        self._busy = False


class _Running(Running):
    """A command that somebody talks to."""

    def __init__(
        self,
        command: Exec,
        pipes: Pipes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_end: Callable[[], None],
    ) -> None:
        self.stdout = reader
        self.stdin = writer
        self._command = command
        self._pipes = pipes
        self._on_end = on_end
        self._finished = asyncio.create_task(self._finish())

    def kill(self) -> None:
        if not self._finished.done():
            self._command.kill()

    async def wait(self) -> Execution:
        return await asyncio.shield(self._finished)

    async def _finish(self) -> Execution:
        loop = asyncio.get_running_loop()
        their_stdin, their_stdout, _ = self._pipes.theirs
        incoming = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(incoming), os.fdopen(os.dup(their_stdin), "rb", 0)
        )
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(os.dup(their_stdout), "wb", 0)
        )
        outgoing = asyncio.StreamWriter(transport, protocol, None, loop)
        self._pipes.close()

        async def feed(writer: asyncio.StreamWriter) -> None:
            while data := await incoming.read(READ_BYTES):
                writer.write(data)
                await writer.drain()

        async def sink(data: bytes) -> None:
            with suppress(ConnectionError):  # nobody listens any more
                outgoing.write(data)
                await outgoing.drain()

        try:
            return await self._command.finish(feed, sink)
        finally:
            outgoing.close()
            self.stdin.close()
            self._on_end()
