"""What became of a program, decided from what was observed. Pure; shared by all backends.

What always holds: `OK` needs exit code 0 and no limit reached; a status that blames the program (and not the
sandbox) rests on what the kernel said, and only among failures also on what the program itself wrote: the last
words of a program that ran out of memory tell MEMORY_LIMIT from RUNTIME_ERROR, and can forge nothing better.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from quintain.failure import Failure, FailureKind, Stage
from quintain.verifiers.sandbox.interface import Execution, Limits, Status

LAST_WORDS_BYTES: Final = 4096
OUT_OF_MEMORY: Final = re.compile(
    rb"^(?:MemoryError\b|numpy\.\S*MemoryError|.*std::bad_alloc|.*Cannot allocate memory"
    rb"|.*JavaScript heap out of memory|.*java\.lang\.OutOfMemoryError|.*runtime: out of memory"
    rb"|.*virtual memory exhausted|.*out of memory allocating)",
    re.MULTILINE,
)


class End(Enum):
    """What ended a program."""

    ITSELF = auto()
    WALL = auto()
    CPU = auto()
    MEMORY = auto()
    OUTPUT = auto()
    CROWD = auto()  # too many processes
    KILLED = auto()  # whoever had started it
    BROKEN = auto()  # the sandbox


@dataclass(frozen=True, slots=True)
class Observed:
    """What a backend knows of a program that is no more: what ended it, its exit code (negative for a signal),
    whether the kernel ran out of its memory, and what it used."""

    end: End
    exit: int | None = None
    out_of_memory: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    trouble: str = ""


def judge(seen: Observed, limits: Limits, stdout: bytes, stderr: bytes) -> Execution:
    """The execution that `seen` amounts to."""
    if seen.end is End.BROKEN:
        return broken(seen.trouble, stdout, stderr)
    status, reason = status_of(seen, limits, stderr)
    return Execution(
        status=status,
        stdout=stdout,
        stderr=stderr,
        exit=seen.exit,
        wall_s=seen.wall_s,
        cpu_s=seen.cpu_s,
        peak_bytes=seen.peak_bytes,
        reason=reason,
    )


def status_of(seen: Observed, limits: Limits, stderr: bytes) -> tuple[Status, str]:
    """The status of a program that the sandbox itself did not fail, and its reason."""
    over_memory = f"it used more than its {limits.memory_bytes:,} bytes of memory"
    over_cpu = f"it used its {limits.cpu_s:g} s of processor time"
    if seen.end is End.OUTPUT:
        return Status.OUTPUT_LIMIT, f"it wrote more than its {limits.output_bytes:,} bytes of output"
    if seen.end is End.MEMORY or (seen.out_of_memory and seen.exit != 0):
        return Status.MEMORY_LIMIT, over_memory
    if seen.end is End.WALL:
        return Status.TIMEOUT, f"it took its {limits.wall_s:g} s"
    if (
        seen.end is End.CPU
        or seen.exit == -signal.SIGXCPU
        or (seen.exit == -signal.SIGKILL and seen.cpu_s >= limits.cpu_s)
    ):
        return Status.TIMEOUT, over_cpu
    if seen.end is End.CROWD:
        return Status.RUNTIME_ERROR, f"it had more than its {limits.processes:,} processes and threads"
    if seen.end is End.KILLED:
        return Status.RUNTIME_ERROR, "it was killed by whoever had started it"
    if seen.exit == 0:
        return Status.OK, ""
    if OUT_OF_MEMORY.search(stderr[-LAST_WORDS_BYTES:]):
        return Status.MEMORY_LIMIT, over_memory
    return Status.RUNTIME_ERROR, how_it_ended(seen.exit)


def how_it_ended(code: int | None) -> str:
    """`code`, in words."""
    if code is None:
        return "it gave no exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def broken(message: str, stdout: bytes = b"", stderr: bytes = b"") -> Execution:
    """The execution of a sandbox that broke."""
    failure = Failure.of(FailureKind.CRASHED, Stage.SANDBOX, message)
    return Execution(Status.INFRA_ERROR, stdout, stderr, reason=failure.message, failure=failure)
