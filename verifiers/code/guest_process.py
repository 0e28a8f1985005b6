"""A program of ours in a session of its own, and frames to and from it (`guest.wire`).

What always holds: a frame that is longer than a frame can be is never read; `close` ends the program and its session,
whatever they do. Whoever talks does so under `patience`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Hashable, Mapping
from typing import Any, Final

from quintain.failure import FailureError, FailureKind, Stage
from quintain.frames import FrameReader, framed
from quintain.verifiers.code.guest.wire import MAX_FRAME_BYTES
from quintain.verifiers.code.sandboxes import Guest
from quintain.verifiers.sandbox.interface import Execution, Limits, Running, Sandbox, Session

READ_BYTES: Final = 1 << 18
PATIENCE_S: Final = 15.0
"""How long after a program's own deadline its end may take to show."""


class GuestProcess:
    """One program. Made by `GuestProcess.begin`."""

    def __init__(self, session: Session, running: Running) -> None:
        self._session, self._running = session, running
        self._reader = FrameReader(MAX_FRAME_BYTES)

    @classmethod
    async def begin(
        cls,
        sandbox: Sandbox,
        guest: Guest,
        limits: Limits,
        job: Mapping[str, Any] | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        group: Hashable = None,
    ) -> GuestProcess:
        """Start `guest` and give it its first `job`. Raises FailureError where the sandbox breaks."""
        session = await sandbox.open(files, limits, group=group)
        try:
            running = await session.start(guest.program)
            running.stdin.write(guest.first if job is None else guest.first + framed(json.dumps(job).encode()))
        except BaseException:
            await session.close()
            raise
        return cls(session, running)

    async def send(self, body: bytes) -> None:
        """Send a frame. A program that is gone does not hear it."""
        with contextlib.suppress(OSError):  # what it says next is its end
            self._running.stdin.write(framed(body))
            if len(body) > READ_BYTES:
                await self._running.stdin.drain()

    async def receive(self) -> bytes | None:
        """The next frame, or None where the program has ended. Raises FrameError."""
        while (body := self._reader.next()) is None:
            try:
                data = await self._running.stdout.read(READ_BYTES)
            except OSError:
                data = b""
            if not data:
                return None
            self._reader.feed(data)
        return body

    async def wait(self) -> Execution:
        """How it ended, once it has."""
        return await self._running.wait()

    async def close(self) -> None:
        """End it, and give its session back."""
        await self._session.close()


@contextlib.asynccontextmanager
async def patience(limits: Limits) -> AsyncIterator[None]:
    """Time enough for programs under `limits` to end. Raises FailureError where the sandbox does not end them."""
    try:
        async with asyncio.timeout(limits.wall_s + PATIENCE_S):
            yield
    except TimeoutError:
        message = "the sandbox did not end a program at its deadline"
        raise FailureError.of(FailureKind.TIMEOUT, Stage.SANDBOX, message) from None
