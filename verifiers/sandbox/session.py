"""What the sessions of all backends have in common, and the starts of the sandboxes.

What always holds: a session runs one command at a time and none once it is closed; the files it was opened with are
written with its first command, once; the channel of a program is closed when the program is over, however it ended; a
sandbox that could not start tries again at the next call, and one that is closed never does.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from quintain.failure import FailureError, QuintainError, Stage, failure_from
from quintain.verifiers.sandbox.command import Pipes, encode
from quintain.verifiers.sandbox.interface import Execution, Files, Limits, Program, Running, Session, check_files
from quintain.verifiers.sandbox.outcome import broken

T = TypeVar("T")
CLOSED: Final = "this sandbox is closed: make a new one"
Begun = tuple[Callable[[], None], Coroutine[Any, Any, Execution]]
"""What ends a program, and what gives its execution when it is over."""


class Channel(Running):
    """A program that somebody talks to: `kill` ends it, `finish` gives its execution when it is over."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kill: Callable[[], None],
        finish: Coroutine[Any, Any, Execution],
    ) -> None:
        self.stdout, self.stdin, self._kill = reader, writer, kill
        self._finished = asyncio.create_task(self._close_after(finish))

    def kill(self) -> None:
        if not self._finished.done():
            self._kill()

    async def wait(self) -> Execution:
        return await asyncio.shield(self._finished)

    async def _close_after(self, finish: Coroutine[Any, Any, Execution]) -> Execution:
        try:
            return await finish
        finally:
            self.stdin.close()


class OneAtATime(Session):
    """The state of a session. `box` bounds all of its files, `env` is added to the environment of every program, and
    `prepared` names the programs of its sandbox."""

    def __init__(
        self,
        files: dict[str, bytes],
        box: Limits,
        *,
        env: Mapping[str, str] | None = None,
        prepared: Collection[str] = (),
    ) -> None:
        self._files, self._box = files, box
        self._env = env or {}
        self._prepared = prepared
        self._running: Channel | None = None
        self._closed = False

    async def run(
        self, program: Program, *, stdin: bytes = b"", files: Files | None = None, limits: Limits | None = None
    ) -> Execution:
        limits = limits or self._box
        try:
            return await self._run(self._encoded(program, files, limits), limits, stdin)
        except OSError as error:
            return broken(str(error))
        except FailureError as error:
            return Execution.broken(error.failure)

    async def start(self, program: Program, *, files: Files | None = None, limits: Limits | None = None) -> Running:
        limits = limits or self._box
        try:
            pipes, reader, writer = await Pipes.talking()
        except OSError as error:
            raise FailureError(failure_from(error, Stage.SANDBOX)) from None
        try:
            kill, finish = await self._start(self._encoded(program, files, limits), limits, pipes)
        except BaseException as error:
            pipes.close()
            writer.close()
            if isinstance(error, OSError):
                raise FailureError(failure_from(error, Stage.SANDBOX)) from None
            raise
        self._running = Channel(reader, writer, kill, finish)
        return self._running

    @abstractmethod
    async def _run(self, command: bytes, limits: Limits, stdin: bytes) -> Execution:
        """Run the encoded command to its end, and forget the files of the session once they are on their way. Raises
        OSError and FailureError where the sandbox broke."""

    @abstractmethod
    async def _start(self, command: bytes, limits: Limits, pipes: Pipes) -> Begun:
        """Start it on `pipes`, likewise; from the check that nothing runs until it is `busy`, nothing else runs."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a command runs."""

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._leave()

    @abstractmethod
    async def _leave(self) -> None:
        """End what runs, and give everything back. Called once."""

    async def _end_running(self) -> None:
        """End the program that was last talked to, if it still runs."""
        if self._running is not None:
            self._running.kill()
            await self._running.wait()

    def _encoded(self, program: Program, files: Files | None, limits: Limits) -> bytes:
        """The next command. Raises QuintainError where it makes no sense."""
        if self._closed:
            raise QuintainError("this session is closed: open another")
        if self.busy:
            raise QuintainError("a session runs one command at a time: wait for the one that runs")
        program = replace(program, env={**self._env, **program.env})
        return encode(program, self._files | check_files(files), limits, self._box, self._prepared)


class Starting(Generic[T]):
    """Starts a sandbox once, by `start`, and gives what that gave; a failure is forgotten, so the next call tries."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start
        self._task: asyncio.Task[T] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def done(self) -> T:
        """Wait until it has started. Raises QuintainError where it cannot, or is closed."""
        if self._closed:
            raise QuintainError(CLOSED)
        if self._task is None:
            self._task = asyncio.create_task(self._start())
        task, us = self._task, asyncio.current_task()
        try:
            return await asyncio.shield(task)
        except QuintainError:
            self._task = None  # perhaps it works the next time
            raise
        except asyncio.CancelledError:
            if task.cancelled() and us is not None and not us.cancelling():  # by `close`, and we are not
                raise QuintainError(CLOSED) from None
            raise

    async def close(self, *, cancel: bool) -> bool:
        """Start no more, and wait for a start that is under way, or `cancel` it; whether this is the first call."""
        if self._closed:
            return False
        self._closed = True
        if self._task is not None:
            if cancel:
                self._task.cancel()
            await asyncio.wait([self._task])
        return True


def slot_count(slots: int | None, default: int) -> int:
    """`slots`, or the default. Raises QuintainError for less than one."""
    if slots is not None and slots < 1:
        raise QuintainError(f"a sandbox has at least one slot, not {slots}")
    return slots or default
