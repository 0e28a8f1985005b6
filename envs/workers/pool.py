"""Worker processes that run environment code, and the killing of those that do not answer.

What always holds:
- a call is answered within about half a second of its deadline: by the worker; or, where the worker's event
  loop no longer turns, by killing that worker and with it only its own episodes;
- a started spare stands ready, so that a killed worker is replaced at once;
- a worker in which cancelled code goes on is given nothing new and ends with its last episode;
- no process outlives the pool, whichever way the pool ends (`quintain.lifeline`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from quintain.cores import share_of_cores
from quintain.envs.options import OPTIONS_ENV
from quintain.envs.workers.frames import (
    Advance,
    Close,
    Describe,
    Fork,
    Open,
    Ping,
    Reply,
    Request,
    WorkerCall,
    framed,
    receive,
    stage_of,
)
from quintain.envs.workers.host import CLOSE_ALL_S, Host
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.lifeline import Lifeline

START_S = 120.0
"""How long a worker may take to import its environment and read the size of its splits."""
OVERDUE_S = 0.35
"""How long after its deadline a call may still be answered by the worker itself."""
PONG_S = 0.25
"""How long a worker with an overdue call may take to show that its event loop turns."""
STOP_S = 3.0
"""How long workers may take to close their environments when the pool stops."""
MAX_BACKOFF_S = 30.0

_DIED = Failure.of(FailureKind.CRASHED, Stage.STEP, "the process that ran the environment died: the log may say why")

log = logging.getLogger(__name__)

Lost = Callable[[Collection[str], Failure], None]


class Backend(Protocol):
    """Where a server's environments run."""

    async def start(self, lost: Lost) -> int | None:
        """Get ready; how many episodes may be played at a time, None where that has no bound.

        `lost` is told of episodes that died without being asked anything. Raises QuintainError.
        """

    def call(self, request: Request, deadline: float) -> Awaitable[Reply]:
        """Do `request` before `deadline` (monotonic seconds). Never raises: what broke is in the reply."""

    async def stop(self) -> None:
        """Close every environment and end."""

    @property
    def ready(self) -> bool:
        """Whether anything can be run right now."""

    def stats(self) -> Mapping[str, float]:
        """Numbers for the metrics: `workers`, `restarts`."""


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    pending: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)
    episodes: set[str] = field(default_factory=set)
    retiring: bool = False
    dead: bool = False
    calls: int = 0

    def ask(self, request: Request, deadline: float) -> asyncio.Future[Reply]:
        """Send `request`; the future of its reply."""
        self.calls += 1
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self.dead:
            reply.set_result(Reply(0, failure=_DIED))
            return reply
        call = WorkerCall(self.calls, deadline, request)
        self.pending[call.id] = reply
        reply.add_done_callback(lambda _: self.pending.pop(call.id, None))
        self.writer.write(framed(call))  # never waits: a worker that reads nothing must not hold up its caller
        return reply


class EnvironmentWorkers:
    """`workers` processes, and a spare, that each run many episodes of the environment `spec`.

    What they write goes to standard error, or is dropped where they are to be `quiet`.
    """

    def __init__(self, spec: str, options: Mapping[str, Any], workers: int, *, quiet: bool = False) -> None:
        self._stderr = subprocess.DEVNULL if quiet else None
        self._spec, self._options = spec, {OPTIONS_ENV: json.dumps(dict(options))}
        self._wanted = workers
        self._lifeline = Lifeline()
        self._workers: list[_Worker] = []
        self._home: dict[str, _Worker] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._restarts = 0
        self._starting = 0
        self._lost: Lost = lambda episodes, failure: None
        self._places: int | None = None  # of one worker

    @property
    def ready(self) -> bool:
        return any(not worker.retiring for worker in self._workers)

    def stats(self) -> Mapping[str, float]:
        return {"workers": len(self._workers), "restarts": self._restarts}

    async def start(self, lost: Lost) -> int | None:
        """Start the workers; ready as soon as the first is. Raises QuintainError where it cannot be.

        An episode goes to the worker with the fewest, so while there are fewer than that one has a place.
        """
        self._lost = lost
        self._workers.append(await self._spawn())
        self._replenish()
        return None if self._places is None else self._places * self._wanted

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.writer.close()
        waits = [asyncio.to_thread(worker.process.wait, STOP_S) for worker in workers]
        await asyncio.gather(*waits, return_exceptions=True)
        for worker in workers:
            self._end(worker)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lifeline.close()

    async def call(self, request: Request, deadline: float) -> Reply:
        worker = await self._worker_for(request, deadline)
        if worker is None:
            if isinstance(request, (Close, Fork)):
                return Reply(0)
            if isinstance(request, Advance):  # it was asked for in the moment in which its process died
                return Reply(0, failure=_DIED)
            return _failed(request, FailureKind.UNREACHABLE, "no worker process is ready: try again later")
        if isinstance(request, (Open, Fork)):
            self._home[request.episode] = worker
            worker.episodes.add(request.episode)
        pending = worker.ask(request, deadline)
        done, _ = await asyncio.wait({pending}, timeout=max(0.0, deadline - time.monotonic()) + OVERDUE_S)
        reply = pending.result() if done else await self._overdue(worker, request, pending)
        if reply.failure is _DIED:
            reply = _failed(request, _DIED.kind, _DIED.message)
        if isinstance(request, Close) or (isinstance(request, Fork) and reply.failure is None and not reply.body):
            self._home.pop(request.episode, None)
            worker.episodes.discard(request.episode)
        if reply.stuck and not worker.retiring:
            log.warning("code that was cancelled goes on in worker %d: it is given nothing new", worker.process.pid)
            worker.retiring = True
        if worker.retiring:
            self._retire()
        return reply

    async def _worker_for(self, request: Request, deadline: float) -> _Worker | None:
        if isinstance(request, (Advance, Close)):
            return self._home.get(request.episode)
        if isinstance(request, Fork):
            home = self._home.get(request.source)
            return None if home is None or home.retiring else home
        while not (open_to_new := [worker for worker in self._workers if not worker.retiring]):
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return None
        return min(open_to_new[: self._wanted], key=lambda worker: len(worker.episodes))

    async def _overdue(self, worker: _Worker, request: Request, pending: asyncio.Future[Reply]) -> Reply:
        """The reply to an overdue call, after killing its worker if that has stopped answering at all."""
        pong = worker.ask(Ping(), time.monotonic())
        await asyncio.wait({pong, pending}, timeout=PONG_S, return_when=asyncio.FIRST_COMPLETED)
        if pending.done():
            return pending.result()
        if pong.done():  # it turns but does not answer: let it end with the episodes it has
            worker.retiring = True
            pending.cancel()
            return _failed(request, FailureKind.TIMEOUT, f"the environment's {stage_of(request)} took too long")
        message = f"the environment's {stage_of(request)} blocked its process past the deadline; the process was killed"
        pending.set_result(_failed(request, FailureKind.TIMEOUT, message))
        log.warning("worker %d does not answer: killed with %d episodes", worker.process.pid, len(worker.episodes))
        self._bury(worker)
        return pending.result()

    def _bury(self, worker: _Worker) -> None:
        """End a worker, tell of the episodes it held, and see to its replacement."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        self._end(worker)
        for episode in worker.episodes:
            self._home.pop(episode, None)
        self._lost(frozenset(worker.episodes), _DIED)
        self._restarts += 1
        self._replenish()

    def _end(self, worker: _Worker) -> None:
        """Kill a worker's process and fail what it was doing."""
        worker.dead = True
        _kill(worker.process)
        worker.writer.close()
        for pending in list(worker.pending.values()):
            if not pending.done():
                pending.set_result(Reply(0, failure=_DIED))
        self._background(asyncio.to_thread(worker.process.wait))

    def _retire(self) -> None:
        """End the retiring workers that are done, and the oldest where there are too many of them."""
        retiring = [worker for worker in self._workers if worker.retiring]
        for worker in [w for w in retiring if not w.episodes] + retiring[: -self._wanted]:
            self._bury(worker)
        self._replenish()

    def _replenish(self) -> None:
        """Start as many workers as are missing, the spare included."""
        alive = sum(not worker.retiring for worker in self._workers) + self._starting
        for _ in range(self._wanted + 1 - alive):
            self._starting += 1
            self._background(self._add())

    async def _add(self) -> None:
        backoff_s = 1.0
        try:
            while True:
                try:
                    self._workers.append(await self._spawn())
                    self._changed.set()
                    return
                except (QuintainError, OSError) as error:
                    log.error("a worker did not start, next try in %.0f s: %s", backoff_s, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        finally:
            self._starting -= 1

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        path = json.dumps(sys.path)
        command = [sys.executable, "-P", "-m", "quintain.envs.workers.worker", str(theirs.fileno()), path, self._spec]
        process = subprocess.Popen(  # noqa: ASYNC220  (a few milliseconds, and asyncio's own would add a thread)
            command,
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=(theirs.fileno(), self._lifeline.fd),
            env=os.environ | self._lifeline.environ() | share_of_cores(self._wanted) | self._options,
            process_group=0,
        )
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = _Worker(process, writer)
        self._background(self._listen(worker, reader))
        try:
            pending = worker.ask(Describe(), time.monotonic() + START_S)
            async with asyncio.timeout(START_S + OVERDUE_S):
                reply = await pending
        except TimeoutError:
            self._end(worker)
            message = f"the environment was not ready within {START_S:g} s: its import or its tasks take too long"
            raise QuintainError(message) from None
        except BaseException:
            self._end(worker)
            raise
        if reply.failure is not None:
            self._end(worker)
            raise QuintainError(reply.failure.message)
        self._places = json.loads(reply.body)["places"]
        return worker

    async def _listen(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        try:
            while (reply := await receive(reader, Reply)) is not None:
                pending = worker.pending.get(reply.id)
                if pending is not None and not pending.done():
                    pending.set_result(reply)
        except (ConnectionError, QuintainError) as error:
            log.warning("worker %d sent nonsense: %s", worker.process.pid, error)
        if worker in self._workers:
            self._bury(worker)
        elif not worker.dead:  # it was about to start
            self._end(worker)

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _failed(request: Request, kind: FailureKind, message: str) -> Reply:
    return Reply(0, failure=Failure.of(kind, stage_of(request), message))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Inline:
    """A backend in the server's own process, for tests and debuggers: nothing to start, and no isolation.

    Code that blocks blocks the server, and no deadline ends it.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    async def start(self, lost: Lost) -> int | None:
        """Nothing to start, and nothing that could be lost."""
        return self._host.bound.places

    def call(self, request: Request, deadline: float) -> asyncio.Future[Reply]:
        """The host's reply."""
        return self._host.answer(WorkerCall(0, deadline, request))

    async def stop(self) -> None:
        """Close every environment."""
        await self._host.close_all(time.monotonic() + CLOSE_ALL_S)

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def stats(self) -> Mapping[str, float]:
        """No workers."""
        return {"workers": 0, "restarts": 0}
