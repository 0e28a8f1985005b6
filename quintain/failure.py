"""One vocabulary of what can break, assigned at the boundary where it broke.

A failure is data, never a reward: it ends a trajectory or a verdict, it is counted by kind and stage, and it
enters no mean and no standard deviation. Four mechanisms, one place each:

- `Failure` is the frozen record that travels on every wire and into every journal.
- `FailureError` carries a `Failure` through Python code; boundaries raise and catch this and nothing else.
- `failure_from` turns an arbitrary exception into a `Failure` without leaking a stack trace.
- `QuintainError` is for people: one line that says what was expected, what came and what to do.
"""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """What went wrong. The set is closed: every client can handle every member."""

    TIMEOUT = "timeout"  # a deadline passed
    CRASHED = "crashed"  # the code or the process that was asked died or raised
    UNREACHABLE = "unreachable"  # nobody answered at that address
    OVERLOADED = "overloaded"  # the queue is full; try again later
    INVALID = "invalid"  # the answer broke its contract (a NaN reward, a malformed observation)
    REJECTED = "rejected"  # the request broke the contract (a step after the end, an unknown task)
    TOO_LONG = "too_long"  # more tokens or bytes than the limit allows
    RESOURCE = "resource"  # memory or disk ran out
    CANCELLED = "cancelled"  # somebody closed it
    LOST = "lost"  # the record of it is gone (an expired lease, a restarted server)


class Stage(StrEnum):
    """Where it went wrong."""

    REQUEST = "request"  # the call itself, before anything ran: a wrong address, a missing token
    RESET = "reset"
    STEP = "step"
    CLOSE = "close"
    TASKS = "tasks"
    VERIFY = "verify"
    SANDBOX = "sandbox"
    RENDER = "render"
    GENERATE = "generate"
    PUBLISH = "publish"
    JOURNAL = "journal"


RETRYABLE = frozenset(
    {FailureKind.UNREACHABLE, FailureKind.OVERLOADED, FailureKind.CRASHED, FailureKind.LOST, FailureKind.TIMEOUT}
)
"""Kinds for which the same request may succeed the next time, unless the raiser knows better."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that broke: `kind` and `stage` are closed sets, `message` is one line for a person."""

    kind: FailureKind
    stage: Stage
    message: str
    retryable: bool

    @classmethod
    def of(cls, kind: FailureKind, stage: Stage, message: str, *, retryable: bool | None = None) -> Failure:
        """A failure whose `retryable` follows from its kind unless given."""
        return cls(kind, stage, one_line(message), kind in RETRYABLE if retryable is None else retryable)

    def __str__(self) -> str:
        return f"{self.kind} in {self.stage}: {self.message}"


class FailureError(Exception):
    """Carries a `Failure` through code that raises."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    @classmethod
    def of(cls, kind: FailureKind, stage: Stage, message: str, *, retryable: bool | None = None) -> FailureError:
        """What carries the failure that `Failure.of` makes of the same."""
        return cls(Failure.of(kind, stage, message, retryable=retryable))

    def __reduce__(self) -> tuple[type[FailureError], tuple[Failure]]:
        return (type(self), (self.failure,))


class QuintainError(Exception):
    """A mistake its user can mend: the message is one line that says what to do. The CLI exits with 2."""


def failure_from(error: BaseException, stage: Stage) -> Failure:
    """The `Failure` that `error` stands for at `stage`; its message names the type and never a stack."""
    if isinstance(error, FailureError):
        return error.failure
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return Failure.of(FailureKind.TIMEOUT, stage, str(error) or "the deadline passed")
    if isinstance(error, asyncio.CancelledError):
        return Failure.of(FailureKind.CANCELLED, stage, "cancelled")
    if isinstance(error, MemoryError):
        return Failure.of(FailureKind.RESOURCE, stage, "out of memory")
    return Failure.of(FailureKind.CRASHED, stage, f"{type(error).__name__}: {error}")


def last_line(error: BaseException, file: str | None) -> int | None:
    """The line of `file` in which `error` arose, or that led to it; None where it is no code of that file's."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return lines[-1] if lines else None


def one_line(text: str, limit: int = 500) -> str:
    """`text` with its white space folded into single blanks and cut to `limit` characters."""
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
