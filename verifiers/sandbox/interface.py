"""The interface of a sandbox: run code nobody trusts, and say truthfully what became of it.

What always holds for every sandbox:
- `run` gives an `Execution`, whatever the program does; what broke on our side is `INFRA_ERROR` with a
  `Failure`, never a status the program could be blamed for. It raises only where the call makes no sense (a
  limit below zero, a closed sandbox);
- when `run` returns, and when a session is closed, no process, mount or file of the program is left;
- one run never learns of another: not of its files, its processes, its output or its memory;
- `protections` says which walls stand on this machine and which do not, with the reason.

    async with NamespaceSandbox() as sandbox:
        done = await sandbox.run(Program.python("print(input())"), stdin=b"7\\n")
        async with sandbox.session(files={"a.cpp": source}) as session:
            await session.run(Program.command("g++", "-O2", "a.cpp"), limits=Limits(wall_s=30, cpu_s=30))
            done = await session.run(Program.command("./a.out"), stdin=b"7\\n")
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final, Self

from quintain.closing import AsyncClosing
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage

Files = Mapping[str, bytes]
"""Relative paths and their contents."""
MEBI: Final = 1 << 20
CLOSED: Final = Failure.of(FailureKind.CANCELLED, Stage.SANDBOX, "the sandbox was closed")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use. Every limit is enforced, or `protections` says that it is not.

    Raises QuintainError for a limit that is no number, zero, negative or infinite.
    """

    wall_s: float = 10.0
    """Seconds on the clock; the program gets nothing after them."""
    cpu_s: float = 10.0
    """Seconds of processor time, over all processes of the program."""
    memory_bytes: int = 512 * MEBI
    """Memory over all processes of the program, its files in the sandbox included."""
    output_bytes: int = MEBI
    """Bytes on stdout and stderr together; the program is ended where it writes more."""
    processes: int = 64
    """Processes and threads at one time."""
    open_files: int = 256
    """File descriptors per process."""
    file_bytes: int = 64 * MEBI
    """Size of one file."""
    workdir_bytes: int = 64 * MEBI
    """Size of all files. Of a session, those given when it was opened count."""
    inodes: int = 8192
    """Number of files and folders. Of a session, those given when it was opened count."""
    stack_bytes: int = 8 * MEBI
    """Stack of the main thread."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, real = getattr(self, each.name), each.name in {"wall_s", "cpu_s"}
            kind = "a number of seconds" if real else "a whole number"
            if isinstance(value, bool) or not isinstance(value, (int, float) if real else int):
                raise QuintainError(f"limit {each.name} is {kind}, not {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise QuintainError(f"limit {each.name} is {kind} above 0, not {value!r}")
            if value >= 1 << 62:
                raise QuintainError(f"limit {each.name} is below 2^62, not {value!r}")


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: a command line, Python source, or a program that the sandbox was made with.

    Python source runs in the sandbox's own interpreter, as `argv[0]` in the work folder, as if by
    `python3 argv[0] ...`; the namespaces sandbox does so without starting an interpreter. `env` is added to
    the few variables that every program gets. `is_prepared` says that `argv[0]` is the name of a program that the
    sandbox has loaded beforehand (`NamespaceSandbox(prepared=...)`). `has_loopback` lets its processes talk to each
    other, and to nobody else, over 127.0.0.1.
    """

    argv: tuple[str, ...]
    source: bytes | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    is_prepared: bool = False
    has_loopback: bool = False

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise QuintainError("a program is at least a name: Program.command('g++', 'a.cpp')")
        if self.source is not None:
            check_path(self.argv[0])
        for name, value in self.env.items():
            if not name or "=" in name:
                raise QuintainError(f"an environment variable has a name without '=', not {name!r}")
            if "\0" in name + value:
                raise QuintainError(f"the environment variable {name!r} holds a NUL character")
        if any("\0" in part for part in self.argv):
            raise QuintainError("an argument of the program holds a NUL character")

    @classmethod
    def command(cls, *argv: str, env: Mapping[str, str] | None = None) -> Program:
        """The command line `argv`, looked up in the PATH of the sandbox, without a shell."""
        return cls(argv, env=env or {})

    @classmethod
    def python(
        cls, source: str | bytes, *args: str, name: str = "main.py", env: Mapping[str, str] | None = None
    ) -> Program:
        """Python `source`, which is written to the work folder as `name` and run with `args`."""
        text = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        return cls((name, *args), text, env or {})

    @classmethod
    def prepared(cls, name: str, *args: str, env: Mapping[str, str] | None = None) -> Program:
        """The program `name` that the sandbox was made with, run with `args`."""
        return cls((name, *args), None, env or {}, is_prepared=True)


class Status(StrEnum):
    """How a program ended. Exactly one of them is success."""

    OK = "ok"  # exit code 0 within all limits
    RUNTIME_ERROR = "runtime_error"  # another exit code, or a signal
    TIMEOUT = "timeout"  # it used up its wall or processor time
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    INFRA_ERROR = "infra_error"  # the sandbox broke: this says nothing about the program


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of a program.

    `exit` is the exit code, negative for a signal, None where there is none. `stdout` and `stderr` are what
    came within `output_bytes`. `wall_s` and `cpu_s` are seconds. `peak_bytes` is the largest amount of memory
    known to be used at one time: of all processes together with a memory cgroup, else of the largest one.
    `failure` is there exactly when the status is INFRA_ERROR; `reason` says in one line why a limit was hit.
    """

    status: Status
    stdout: bytes = b""
    stderr: bytes = b""
    exit: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    reason: str = ""
    failure: Failure | None = None

    @classmethod
    def broken(cls, failure: Failure) -> Execution:
        """What there is to say where the sandbox broke."""
        return cls(Status.INFRA_ERROR, reason=failure.message, failure=failure)

    def unbroken(self) -> Execution:
        """This one, which says something about the program. Raises FailureError where the sandbox broke."""
        if self.failure is not None:
            raise FailureError(self.failure)
        return self


@dataclass(frozen=True, slots=True)
class Protection:
    """A wall between a program and the rest: whether it stands on this machine, and by what or why not."""

    name: str
    held: bool
    how: str


class Running(ABC):
    """A program that runs now, with a private channel: what is written to `stdin` it reads, what it writes
    comes out of `stdout`.

    `output_bytes` bounds stderr only; stdout is held back by whoever reads it. The program is killed at its
    deadline, by `kill`, and when its session closes; `wait` then says how it ended. Reading after that gives
    what it had written, then the end.
    """

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader

    @abstractmethod
    def kill(self) -> None:
        """End the program now, if it still runs."""

    @abstractmethod
    async def wait(self) -> Execution:
        """How it ended; `stdout` of the execution is empty, the channel had it. May be called again."""


class Session(AsyncClosing):
    """A private work folder in which commands run one after the other, each with its own limits.

    Between two commands every process of the first is gone; its files are there. An async context manager:
    leaving it frees the slot.
    """

    @abstractmethod
    async def run(
        self, program: Program, *, stdin: bytes = b"", files: Files | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run `program` to its end. `files` are written before it; limits of the work folder were set when the
        session was opened."""

    @abstractmethod
    async def start(self, program: Program, *, files: Files | None = None, limits: Limits | None = None) -> Running:
        """Start `program` and talk to it. Raises FailureError where the sandbox broke."""

    @abstractmethod
    async def close(self) -> None:
        """End what runs, and give everything back. Calling it twice is allowed."""


class Sandbox(AsyncClosing):
    """Runs programs, several at a time, on one event loop. An async context manager."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready, so that the first run does not pay for it. Calling it is optional, and twice allowed.

        Raises QuintainError where this machine cannot do it, with what to do.
        """

    @abstractmethod
    async def protections(self) -> tuple[Protection, ...]:
        """Which walls stand here. Starts the sandbox if need be."""

    @abstractmethod
    async def open(
        self, files: Files | None = None, limits: Limits | None = None, *, group: Hashable = None
    ) -> Session:
        """A session, once a slot is free; see `session`. Raises FailureError where the sandbox broke."""

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Files | None = None,
        limits: Limits | None = None,
        group: Hashable = None,
    ) -> Execution:
        """Run `program` in a fresh sandbox of its own.

        `files` are relative paths and their contents. Runs wait for a free slot; those of different `group`s
        take turns, those of one group go in order. Cancelling the call ends the program.
        """
        try:
            async with await self.open(files, limits, group=group) as session:
                return await session.run(program, stdin=stdin, limits=limits)
        except FailureError as error:
            return Execution.broken(error.failure)

    @abstractmethod
    async def close(self) -> None:
        """End every program and give everything back. Calling it twice is allowed."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self


def check_path(path: str) -> str:
    """`path` if it names a file inside the work folder, whatever lies there; else raises QuintainError."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or path.endswith("/") or ".." in parts or "\0" in path:
        raise QuintainError(f"a file of a sandbox has a relative path without '..', not {path!r}")
    return path


def check_files(files: Files | None) -> dict[str, bytes]:
    """`files` with every path checked."""
    return {check_path(path): bytes(content) for path, content in (files or {}).items()}
