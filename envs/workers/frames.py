"""What the front of a server and the workers that run its environments say to each other.

A frame (`quintain.frames`) has a msgpack body. Deadlines are points in time of the machine's monotonic clock, which all
its processes share. A worker's answer to the outside travels as the JSON text that the front passes on unread, so what
an environment says is encoded, and refused if it cannot be, where it was said.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Discriminator

from quintain.codec import pack, unpack
from quintain.envs.base import Action
from quintain.failure import Failure, Stage
from quintain.frames import HEADER, MAX_FRAME_BYTES
from quintain.task import Task, TaskOrigin

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Open:
    """Make an environment and reset it, on a `task` of the client's or on the one at `origin`."""

    episode: str
    task: Task | None
    origin: TaskOrigin | None
    seed: int | None
    op: Literal["open"] = "open"


@dataclass(frozen=True, slots=True)
class Fork:
    """Have the environment of `source` make another for `episode`; the answer is empty where it knows no way to."""

    episode: str
    source: str
    op: Literal["fork"] = "fork"


@dataclass(frozen=True, slots=True)
class Advance:
    """Step the episode's environment."""

    episode: str
    action: Action
    op: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class Close:
    """Cancel what the episode is doing and close its environment. An unknown episode is closed already."""

    episode: str
    op: Literal["close"] = "close"


@dataclass(frozen=True, slots=True)
class ReadTasks:
    """Tasks `start` to `start + count` of a split, without their references."""

    split: str
    start: int
    count: int
    op: Literal["tasks"] = "tasks"


@dataclass(frozen=True, slots=True)
class Describe:
    """Which environment this is."""

    op: Literal["describe"] = "describe"


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that the worker's event loop turns."""

    op: Literal["ping"] = "ping"


Request = Annotated[Open | Fork | Advance | Close | ReadTasks | Describe | Ping, Discriminator("op")]

_STAGES = {"open": Stage.RESET, "fork": Stage.RESET, "step": Stage.STEP, "close": Stage.CLOSE, "ping": Stage.REQUEST}


def stage_of(request: Request) -> Stage:
    """The stage at which `request` fails if it does."""
    return _STAGES.get(request.op, Stage.TASKS)


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """A request, to be answered by a reply of the same id before `deadline` (monotonic seconds)."""

    id: int
    deadline: float
    request: Request


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to call `id`: JSON text in `body`, or a `failure`.

    `ended`: the episode is over. `stuck`: code that was cancelled goes on regardless, so this worker should
    be given nothing new.
    """

    id: int
    body: str = ""
    ended: bool = False
    failure: Failure | None = None
    stuck: bool = False


def framed(message: WorkerCall | Reply) -> bytes:
    """`message` as a frame."""
    body = pack(message)
    return HEADER.pack(len(body)) + body


async def receive(reader: asyncio.StreamReader, kind: type[T]) -> T | None:
    """Read one frame of `kind`, or None at the end of the stream."""
    try:
        (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
        if size > MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {size} bytes is more than {MAX_FRAME_BYTES}")
        return unpack(await reader.readexactly(size), kind)
    except asyncio.IncompleteReadError:
        return None
