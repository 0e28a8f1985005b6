"""A worker's desk: calls come in as frames, are done by a host, and go out as JSON text or failures.

What always holds: every call gets one reply, whatever happens, unless the socket closes first; calls are
answered each in its own time, in no order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError

from quintain.codec import to_json
from quintain.envs.base import Observation, invalid
from quintain.envs.serving.wire import Metadata, PublicTask, TaskPage
from quintain.envs.workers.frames import STAGES, Advance, Call, Close, Describe, Open, Page, Reply, framed, receive
from quintain.envs.workers.host import Host
from quintain.failure import Failure, FailureError, FailureKind, Stage, one_line
from quintain.task import TaskOrigin

CLOSE_ALL_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """The part of an `EpisodeCreated` that the environment says."""

    observation: Observation


class Desk:
    """Answers calls with a host, as JSON text or as failures."""

    def __init__(self, spec: str, host: Host) -> None:
        self.spec = spec
        self.host = host

    async def answer(self, call: Call) -> Reply:
        """The reply to `call`; never raises."""
        try:
            body, ended = await self._do(call)
        except FailureError as error:
            if error.__cause__ is not None and error.failure.kind is not FailureKind.CANCELLED:
                log.warning("%s", _where(call), exc_info=error.__cause__)
            return Reply(call.id, failure=error.failure, stuck=self.host.stuck)
        return Reply(call.id, body, ended, stuck=self.host.stuck)

    async def _do(self, call: Call) -> tuple[str, bool]:
        host, request, deadline = self.host, call.request, call.deadline
        if isinstance(request, Open):
            task = request.origin or request.task
            if task is None:
                raise FailureError(Failure.of(FailureKind.REJECTED, Stage.RESET, "give a task or its place"))
            return _encoded(Opened(await host.open(request.episode, task, request.seed, deadline)), Stage.RESET), False
        if isinstance(request, Advance):
            step = await host.step(request.episode, request.action, deadline)
            return _encoded(step, Stage.STEP), step.ended
        if isinstance(request, Close):
            await host.close(request.episode, deadline)
        elif isinstance(request, Page):
            size, tasks = await host.page(request.split, request.start, request.count, deadline)
            public = [PublicTask.of(t, TaskOrigin(request.split, request.start + i)) for i, t in enumerate(tasks)]
            return _encoded(TaskPage(request.split, request.start, size, tuple(public)), Stage.TASKS), False
        elif isinstance(request, Describe):
            cls = host.bound.cls
            name = cls.__name__ if ":" in self.spec else self.spec  # a spec may be a path, which is nobody's business
            about = one_line((cls.__doc__ or "").strip().partition("\n\n")[0])
            return _encoded(Metadata(name, about, cls.version, await host.sizes(deadline)), Stage.TASKS), False
        return "", False


def _encoded(value: Any, stage: Stage) -> str:
    try:
        return to_json(value)
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        message = f"what the environment's {stage} gave cannot be sent as JSON: {type(error).__name__}"
        raise invalid(message, stage) from error


def _where(call: Call) -> str:
    episode = getattr(call.request, "episode", None)
    return f"{STAGES[call.request.op]} failed" + (f" in episode {episode}" if episode else "")


async def serve(sock: socket.socket, desk: Desk) -> None:
    """Answer the calls that come on `sock` until it closes."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    answering: set[asyncio.Task[None]] = set()

    async def answer(call: Call) -> None:
        reply = await desk.answer(call)
        with contextlib.suppress(ConnectionError):  # nobody waits for it any longer
            writer.write(framed(reply))
            await writer.drain()

    while (call := await receive(reader, Call)) is not None:
        task = asyncio.create_task(answer(call))
        answering.add(task)
        task.add_done_callback(answering.discard)
    await desk.host.close_all(time.monotonic() + CLOSE_ALL_S)
    writer.close()


async def refuse(sock: socket.socket, message: str) -> None:
    """Answer the first call on `sock` with a failure that says `message`: there is nothing to serve."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    if (call := await receive(reader, Call)) is not None:
        failure = Failure.of(FailureKind.REJECTED, Stage.REQUEST, message)
        writer.write(framed(Reply(call.id, failure=failure)))
    writer.close()
    await writer.wait_closed()
