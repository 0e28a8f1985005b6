"""What all sessions and sandboxes share: starting once, one command at a time, channels that close."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from quintain.failure import FailureError, QuintainError
from quintain.verifiers.sandbox.command import Pipes
from quintain.verifiers.sandbox.interface import Execution, Limits, Program, Status
from quintain.verifiers.sandbox.session import Begun, OneAtATime, Starting, slot_count


class Fake(OneAtATime):
    """A session whose commands end when they are told to; `trouble` is raised instead of starting one."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(files or {}, Limits())
        self.over = asyncio.Event()
        self.commands: list[bytes] = []
        self.left = 0
        self.trouble: Exception | None = None
        self._busy = False

    @property
    def busy(self) -> bool:
        return self._busy

    async def _leave(self) -> None:
        await self._end_running()
        self.left += 1

    async def _run(self, command: bytes, limits: Limits, stdin: bytes) -> Execution:
        return await self._begin(command)

    async def _start(self, command: bytes, limits: Limits, pipes: Pipes) -> Begun:
        finish = self._begin(command)
        pipes.close()
        return self.over.set, finish

    def _begin(self, command: bytes) -> Coroutine[Any, Any, Execution]:
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(command)
        self._files = {}
        self._busy = True
        return self._finish()

    async def _finish(self) -> Execution:
        await self.over.wait()
        self._busy = False
        return Execution(Status.OK)


PROGRAM = Program.command("true")


async def test_a_second_command_is_refused_while_one_runs_and_after_the_end() -> None:
    session = Fake({"only-once": b"1"})
    running = await session.start(PROGRAM)
    for again in (session.run, session.start):
        with pytest.raises(QuintainError, match="one command at a time"):
            await again(PROGRAM)
    running.kill()
    assert (await running.wait()).status is Status.OK
    assert running.stdin.is_closing()
    assert (await session.run(PROGRAM)).status is Status.OK
    assert [b"only-once" in command for command in session.commands] == [True, False]
    await session.close()
    await session.close()
    assert session.left == 1
    with pytest.raises(QuintainError, match="session is closed"):
        await session.run(PROGRAM)


async def test_a_session_that_is_closed_ends_what_runs() -> None:
    session = Fake()
    running = await session.start(PROGRAM)
    await session.close()
    assert (await running.wait()).status is Status.OK


async def test_what_breaks_before_a_command_is_a_failure_and_its_files_are_still_to_be_written() -> None:
    session = Fake({"only-once": b"1"})
    session.trouble = OSError("no descriptors")
    with pytest.raises(FailureError, match="no descriptors"):
        await session.start(PROGRAM)
    assert (await session.run(PROGRAM)).status is Status.INFRA_ERROR
    session.trouble = None
    session.over.set()
    assert (await session.run(PROGRAM)).status is Status.OK
    assert b"only-once" in session.commands[0]


async def test_a_start_is_made_once_and_a_failed_one_again() -> None:
    starts: list[int] = []

    async def start() -> int:
        starts.append(len(starts))
        await asyncio.sleep(0)
        if len(starts) == 1:
            raise QuintainError("not yet")
        return len(starts)

    starting = Starting(start)
    first = await asyncio.gather(starting.done(), starting.done(), return_exceptions=True)
    assert [str(each) for each in first] == ["not yet", "not yet"]
    assert await asyncio.gather(starting.done(), starting.done()) == [2, 2]
    assert await starting.close(cancel=True) is True
    assert await starting.close(cancel=True) is False
    with pytest.raises(QuintainError, match="closed"):
        await starting.done()
    assert starts == [0, 1]


async def test_who_waits_for_a_start_learns_that_it_was_closed_or_was_cancelled_itself() -> None:
    async def start() -> None:
        await asyncio.Event().wait()

    starting = Starting(start)
    waiting, leaving = asyncio.create_task(starting.done()), asyncio.create_task(starting.done())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await starting.close(cancel=True)
    with pytest.raises(QuintainError, match="closed"):
        await waiting


def test_a_sandbox_has_at_least_one_slot() -> None:
    assert (slot_count(None, 3), slot_count(1, 3)) == (3, 1)
    with pytest.raises(QuintainError, match="at least one slot, not 0"):
        slot_count(0, 3)
