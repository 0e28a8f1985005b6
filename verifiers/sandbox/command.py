"""One command in a slot, from its encoding to its execution.

What always holds: its descriptors are closed whatever happens; a command whose caller is cancelled is killed,
and the caller learns of the cancellation only when it is gone; one that is not reported on in time takes its
keeper with it, never its caller; and where it lives then, past its deadline, that is its timeout: no load of a
program's own is a failure of the sandbox.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.capture import Capture
from quintain.verifiers.sandbox.cgroups import SLACK_BYTES, UNBOUNDED, SlotGroup
from quintain.verifiers.sandbox.handle import ENVIRONMENT, JailZygote, KeeperGone, KeeperHandle
from quintain.verifiers.sandbox.interface import Execution, Limits, Program
from quintain.verifiers.sandbox.jail import keeper as wire
from quintain.verifiers.sandbox.jail.guest import HEADER
from quintain.verifiers.sandbox.outcome import End, Observed, judge

WATCH_S: Final = 0.05
"""How often the keeper sums up what all processes of a program use."""
OVERDUE_S: Final = 5.0
"""How long after a program's deadline its keeper may take to report before it is given up."""
DATA_FACTOR: Final = 4
"""With a memory control group, one process may map so many times its memory: runtimes reserve more than they use."""
SLACK_PROCESSES: Final = 8
"""Of ours, in the control group of a program."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
"""Files take whole ones of these."""
OWN_INODES: Final = 3
"""Folders of a session beside the one for work."""
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
ENDS: Final = {
    wire.ENDED: End.ITSELF,
    wire.WALL: End.WALL,
    wire.CPU: End.CPU,
    wire.MEMORY: End.MEMORY,
    wire.KILLED: End.KILLED,
    wire.BROKEN: End.BROKEN,
    wire.CROWD: End.CROWD,
}


def encode(
    program: Program, files: dict[str, bytes], limits: Limits, box: Limits, prepared: Collection[str] = ()
) -> bytes:
    """A command for the guest: `files` are written before it, `box` bounds all files of the session, `prepared`
    names the programs that the sandbox was made with.

    Raises QuintainError where the files cannot fit, and for a program that is not prepared.
    """
    if program.is_prepared and program.argv[0] not in prepared:
        known = ", ".join(prepared) or "none"
        raise QuintainError(f"this sandbox has no program {program.argv[0]!r}; it was made with: {known}")
    if program.source is not None:
        files = {**files, program.argv[0]: program.source}
    for name, content in files.items():
        if len(content) > limits.file_bytes:
            raise QuintainError(f"the file {name!r} has {len(content):,} bytes, its limit is {limits.file_bytes:,}")
    total = sum(map(len, files.values()))
    if total > box.workdir_bytes or sum(map(pages, map(len, files.values()))) > pages(box.workdir_bytes):
        raise QuintainError(
            f"the files have {total:,} bytes, the limit of their folder is {box.workdir_bytes:,} (in whole pages)"
        )
    folders = {parent for name in files for parent in PurePosixPath(name).parents}
    if len(files) + len(folders) + OWN_INODES > box.inodes:
        raise QuintainError(
            f"{len(files):,} files in {len(folders):,} folders are more than the limit of {box.inodes:,} inodes"
        )
    head = {
        "argv": program.argv,
        "env": ENVIRONMENT | dict(program.env),
        "python": program.source is not None,
        "prepared": program.is_prepared,
        "loopback": program.has_loopback,
        "files": list(files),
        "sizes": [len(content) for content in files.values()],
        "limits": {
            "cpu_s": limits.cpu_s,
            "stack_bytes": limits.stack_bytes,
            "file_bytes": limits.file_bytes,
            "open_files": limits.open_files,
            "processes": limits.processes,
            "workdir_bytes": box.workdir_bytes,
            "inodes": box.inodes,
        },
    }
    encoded = json.dumps(head).encode()
    return b"".join((HEADER.pack(len(encoded)), encoded, *files.values()))


def pages(size: int) -> int:
    """How many pages of memory hold `size` bytes."""
    return -(-size // PAGE_BYTES)


@dataclass(slots=True)
class Pipes:
    """A program's three descriptors, and our ends of those that are captured."""

    theirs: list[int]
    captured: list[int]

    @classmethod
    def capturing(cls, stdin: bytes) -> Pipes:
        """`stdin` from memory, stdout and stderr kept. Raises OSError where there are no descriptors any more."""
        pipes = cls([sealed(stdin)], [])
        try:
            pipes._capture()
            pipes._capture()
        except OSError:
            pipes.close()
            raise
        return pipes

    @classmethod
    async def talking(cls) -> tuple[Pipes, asyncio.StreamReader, asyncio.StreamWriter]:
        """A channel on stdin and stdout, and stderr kept."""
        their_stdin, our_stdin = os.pipe()
        our_stdout, their_stdout = os.pipe()
        pipes = cls([their_stdin, their_stdout], [])
        pipes._capture()
        return pipes, *await streams(our_stdout, our_stdin)

    def close(self) -> None:
        """Let go of all of them."""
        self.close_theirs()
        while self.captured:
            os.close(self.captured.pop())

    def close_theirs(self) -> None:
        """Let go of the program's ends."""
        while self.theirs:
            os.close(self.theirs.pop())

    def _capture(self) -> None:
        ours, theirs = os.pipe()
        self.theirs.append(theirs)
        self.captured.append(ours)


async def streams(reads: int, writes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What comes from the pipe `reads` and goes into `writes`, both taken over."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reads, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(writes, "wb", 0)
    )
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


class Command:
    """A command that has been ordered; `finish` must be awaited. Takes over `pipes`. Raises OSError."""

    def __init__(
        self,
        keeper: KeeperHandle,
        zygote: JailZygote,
        group: SlotGroup,
        command: bytes,
        limits: Limits,
        pipes: Pipes,
        *,
        once: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._keeper, self._zygote, self._group, self._limits = keeper, zygote, group, limits
        self.closed = False
        """Whether the session has ended with it."""
        bounded = "memory" in group.controls
        order = wire.ORDER.pack(
            wire.RUN,
            limits.wall_s,
            limits.cpu_s,
            WATCH_S,
            UNBOUNDED if bounded else limits.memory_bytes,
            min(limits.memory_bytes * (DATA_FACTOR if bounded else 1), UNBOUNDED),
            limits.processes,
            once,
        )
        try:
            group.limit(limits.memory_bytes + SLACK_BYTES, limits.processes + SLACK_PROCESSES)
            group.reset_peak()
            self._oom_before = group.out_of_memory()
            memfd = sealed(command)
        except OSError:
            pipes.close()
            raise
        try:
            self._report = keeper.send(order, [memfd, *pipes.theirs])
        finally:
            os.close(memfd)
            pipes.close_theirs()
        self._capture = Capture(loop, pipes.captured, limits.output_bytes, self.kill)

    def kill(self, *, last: bool = False) -> None:
        """End it, if it still runs, and where it is the `last` its session with it."""
        self._keeper.kill(self._report, last=last)

    async def finish(self) -> Execution:
        """Its execution, when it is over. Raises KeeperGone."""
        try:
            report = await self._await_report()
            outputs = self._capture.finish()
        finally:
            self._capture.close()
        stdout, stderr = outputs if len(outputs) == 2 else (b"", outputs[0])
        return judge(self._observed(report), self._limits, stdout, stderr)

    async def _await_report(self) -> bytes:
        lives_on = False
        try:
            await asyncio.wait([self._report], timeout=self._limits.wall_s + OVERDUE_S)
            if not self._report.done() and self._keeper.begun is not None:
                due = self._keeper.begun + self._limits.wall_s + OVERDUE_S  # it may have begun late
                await asyncio.wait([self._report], timeout=max(0.0, due - asyncio.get_running_loop().time()))
            if not self._report.done():
                lives_on = self._keeper.begun is not None and self._keeper.has_programs()
                self._zygote.kill_keeper(self._keeper.slot)
            return await asyncio.shield(self._report)
        except asyncio.CancelledError:
            self.kill()
            await asyncio.wait([self._report], timeout=OVERDUE_S)
            if not self._report.done():
                self._zygote.kill_keeper(self._keeper.slot)
            raise
        except KeeperGone:
            if self._group.out_of_memory() > self._oom_before:
                # The kernel took the keeper for the biggest user of its slot's memory: what ran there is the cause.
                return wire.REPORT.pack(wire.MEMORY, -signal.SIGKILL, 0.0, 0.0, 0, True)
            if lives_on:
                return wire.REPORT.pack(wire.WALL, -signal.SIGKILL, self._limits.wall_s + OVERDUE_S, 0.0, 0, True)
            raise

    def _observed(self, report: bytes) -> Observed:
        why, code, wall_s, cpu_s, peak_bytes, self.closed = wire.REPORT.unpack_from(report)
        end = ENDS[why]
        if self._capture.overflowed and end in (End.ITSELF, End.KILLED):
            end = End.OUTPUT
        return Observed(
            end=end,
            exit=code,
            out_of_memory=code != 0 and self._group.out_of_memory() > self._oom_before,
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_bytes=self._group.peak_bytes() or peak_bytes,
            trouble=report[wire.REPORT.size :].decode("utf-8", "replace"),
        )


def sealed(content: bytes) -> int:
    """A descriptor from which `content` can be read, and which nobody can change."""
    fd = os.memfd_create("quintain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
