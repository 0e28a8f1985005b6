"""Programs as plain processes with resource limits: no walls. For code that is trusted, and for tests.

What always holds, and it is all that does: a program ends at its deadline with its process group, its output is
bounded, and its folder is removed. It can read and change whatever the service can, and a process that leaves
the group stays. So it must be asked for by name: `ProcessSandbox(unsafe=True)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Final

from quintain.cores import cores
from quintain.failure import FailureError, QuintainError, Stage, failure_from
from quintain.slots import Slots
from quintain.verifiers.sandbox.capture import Capture
from quintain.verifiers.sandbox.command import Pipes, sealed
from quintain.verifiers.sandbox.interface import (
    CLOSED,
    Execution,
    Files,
    Limits,
    Protection,
    Sandbox,
    Session,
    check_files,
)
from quintain.verifiers.sandbox.interpreter import Interpreter, inspect
from quintain.verifiers.sandbox.jail.bare import BEGUN
from quintain.verifiers.sandbox.outcome import End, Observed, broken, judge
from quintain.verifiers.sandbox.session import Begun, OneAtATime, Starting, slot_count

BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from jail.bare import main; del sys.path[0];"
    " main(*map(int, sys.argv[1:]))"
)


class ProcessSandbox(Sandbox):
    """`slots` programs at a time, by default one for each processor. `python` runs Python programs.

    Raises QuintainError unless `unsafe` is True.
    """

    def __init__(self, *, unsafe: bool = False, slots: int | None = None, python: str | None = None) -> None:
        if unsafe is not True:
            raise QuintainError(
                "the process sandbox has no walls: a program can do whatever this service can; write unsafe: true to"
                " have it all the same, or use the namespaces sandbox"
            )
        self._python = python or sys.executable
        self._slots = Slots(range(slot_count(slots, cores())))
        self._sessions: set[_Session] = set()
        self._starting = Starting(self._start)

    async def start(self) -> None:
        await self._starting.done()

    async def protections(self) -> tuple[Protection, ...]:
        nothing = "the process sandbox has no walls"
        missing = ("files", "disk", "network", "processes", "verdict", "leftovers", "identity", "capabilities")
        return (
            *(Protection(name, False, nothing) for name in (*missing, "system calls", "process count")),
            Protection("wall time", True, "the process group is killed at the deadline"),
            Protection("processor time", False, "RLIMIT_CPU for each process; there is no sum"),
            Protection("memory of one process", True, "RLIMIT_DATA"),
            Protection("memory of all processes", False, nothing),
            Protection("fair share of processors", False, nothing),
        )

    async def open(
        self, files: Files | None = None, limits: Limits | None = None, *, group: Hashable = None
    ) -> Session:
        checked = check_files(files)
        interpreter = await self._starting.done()
        slot = await self._slots.acquire(group)
        try:
            session = _Session(self, slot, interpreter.path, checked, limits or Limits())
        except OSError as error:
            self._slots.release(slot)
            raise FailureError(failure_from(error, Stage.SANDBOX)) from None
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        self._slots.close(CLOSED)
        await self._starting.close(cancel=True)
        for session in list(self._sessions):
            await session.close()

    async def _start(self) -> Interpreter:
        return await asyncio.to_thread(inspect, self._python)

    def _ended(self, session: _Session, slot: int) -> None:
        self._sessions.discard(session)
        self._slots.release(slot)


class _Session(OneAtATime):
    """A temporary folder."""

    def __init__(self, sandbox: ProcessSandbox, slot: int, python: str, files: dict[str, bytes], box: Limits) -> None:
        self._folder = tempfile.mkdtemp(prefix="quintain-")
        super().__init__(files, box, env={"HOME": self._folder, "TMPDIR": self._folder})
        self._sandbox, self._slot, self._python = sandbox, slot, python
        self._process: _Process | None = None

    @property
    def busy(self) -> bool:
        return self._process is not None and not self._process.gone.is_set()

    async def _run(self, command: bytes, limits: Limits, stdin: bytes) -> Execution:
        return await self._begin(command, limits, Pipes.capturing(stdin)).finish()

    async def _start(self, command: bytes, limits: Limits, pipes: Pipes) -> Begun:
        process = self._begin(command, limits, pipes)
        return process.kill, process.finish()

    async def _leave(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.gone.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        self._sandbox._ended(self, self._slot)

    def _begin(self, command: bytes, limits: Limits, pipes: Pipes) -> _Process:
        self._files = {}
        fresh = self._process is None
        try:
            self._process = _Process(self._python, self._folder, command, limits, pipes, fresh=fresh)
        except BaseException:
            pipes.close()
            raise
        return self._process


class _Process:
    """A process group with a deadline. `gone` is set when it has been reaped."""

    def __init__(self, python: str, folder: str, command: bytes, limits: Limits, pipes: Pipes, *, fresh: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._end = End.ITSELF
        self._observed = Observed(End.BROKEN)
        self.gone = asyncio.Event()
        memfd = sealed(command)
        self._begun, begins = os.pipe()
        argv = [python, "-I", "-X", "utf8", "-c", BOOT, f"{Path(__file__).parent}"]
        argv += map(str, (memfd, begins, int(fresh), limits.memory_bytes))
        stdin, stdout, stderr = pipes.theirs
        self._began = time.monotonic()
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[memfd, begins],
                cwd=folder,
                start_new_session=True,
            )
        except OSError:
            os.close(self._begun)
            raise
        finally:
            os.close(memfd)
            os.close(begins)
            pipes.close_theirs()
        self._capture = Capture(self._loop, pipes.captured, limits.output_bytes, lambda: self.kill(End.OUTPUT))
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)
        self._timer = self._loop.call_later(limits.wall_s, self.kill, End.WALL)

    def kill(self, why: End = End.KILLED) -> None:
        """End its process group, if it still runs."""
        if not self.gone.is_set():
            if self._end is End.ITSELF:
                self._end = why
            self._kill_group()

    async def finish(self) -> Execution:
        """Its execution, when it is over."""
        try:
            await self.gone.wait()
            outputs = self._capture.finish()
        except asyncio.CancelledError:
            self.kill()
            await self.gone.wait()
            raise
        finally:
            self._capture.close()
        stdout, stderr = outputs if len(outputs) == 2 else (b"", outputs[0])
        seen = self._observed
        if seen.end is End.BROKEN:
            last = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return broken(f"the program could not be started: {last}")
        if self._capture.overflowed and seen.end in (End.ITSELF, End.KILLED):
            seen = replace(seen, end=End.OUTPUT)
        return judge(seen, self._limits, stdout, stderr)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._timer.cancel()
        self._kill_group()  # before its leader is reaped and the number may be somebody else's
        _, status, rusage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        begun = os.read(self._begun, 1) == BEGUN
        os.close(self._begun)
        self._observed = Observed(
            end=End.BROKEN if self._end is End.ITSELF and not begun else self._end,
            exit=self._process.returncode,
            wall_s=time.monotonic() - self._began,
            cpu_s=rusage.ru_utime + rusage.ru_stime,
            peak_bytes=rusage.ru_maxrss * 1024,
        )
        self.gone.set()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
