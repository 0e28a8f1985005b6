"""Runs the environments of one class in this process: the boundary between their code and everything else. In a
worker, calls come in as frames and go out as JSON text or failures.

What always holds:
- whatever that code raises, returns or never returns becomes a `FailureError` of the closed vocabulary, in
  time: code that awaits is cancelled at its deadline (code that blocks is the business of the process around
  this one);
- the message of a failure never quotes the task's reference; the log gets the whole stack, clients get one
  line;
- an environment that was made is closed, at the latest by `close_all`;
- every call gets one reply, whatever happens, unless the socket closes first; calls are answered each in its own
  time, in no order.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from quintain.codec import to_json
from quintain.envs.base import Action, Environment, Observation, Step, invalid
from quintain.envs.judging import JudgingEnv
from quintain.envs.options import Bound
from quintain.envs.serving.wire import Metadata, PublicTask, TaskPage
from quintain.envs.workers.frames import (
    Advance,
    Close,
    Describe,
    Fork,
    Open,
    ReadTasks,
    Reply,
    WorkerCall,
    framed,
    receive,
    stage_of,
)
from quintain.failure import (
    Failure,
    FailureError,
    FailureKind,
    QuintainError,
    Stage,
    failure_from,
    last_line,
    one_line,
)
from quintain.task import Task, TaskOrigin, TaskSource, size_of
from quintain.verifiers.shared import Verifiers

T = TypeVar("T")

CANCEL_GRACE_S = 0.2
"""How long cancelled code may take to come to its end before it counts as stuck."""
CLOSE_ALL_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """The part of an `EpisodeCreated` that the environment says."""

    observation: Observation
    task_id: str


@dataclass(slots=True)
class _Live:
    env: Environment | None
    task: Task | None
    running: asyncio.Task[Any] | None = None


class _Bounded(asyncio.Future[T]):
    """What `work` comes to; cancelling it cancels the work."""

    def __init__(self, work: asyncio.Future[Any]) -> None:
        super().__init__(loop=work.get_loop())
        self._work = work

    def cancel(self, msg: Any | None = None) -> bool:
        self._work.cancel()
        return super().cancel(msg)


class Host:
    """The live environments of `bound`, by episode id. Deadlines are points in time of `time.monotonic`.

    `spec` is what the environment was named by.
    """

    def __init__(self, bound: Bound, spec: str = "") -> None:
        self.bound = bound
        self.spec = spec or bound.cls.__name__
        self._live: dict[str, _Live] = {}
        self._verifiers = Verifiers()
        self._stuck: set[asyncio.Task[Any]] = set()
        self._late: set[asyncio.Future[Any]] = set()
        self._sources: dict[str, TaskSource] = {}
        self._reader: ThreadPoolExecutor | None = None

    @property
    def stuck(self) -> bool:
        """Whether code that was cancelled, or that reads tasks, goes on past its deadline."""
        return bool(self._stuck or self._late)

    def answer(self, call: WorkerCall) -> asyncio.Future[Reply]:
        """The reply to `call`, never an exception. Cancelling it cancels what was asked for."""
        if not isinstance(call.request, Advance):
            return asyncio.ensure_future(self._answered(call))
        try:
            stepping = self._stepping(call.request.episode, call.request.action, call.deadline)
        except FailureError as error:
            reply = asyncio.get_running_loop().create_future()
            reply.set_result(self._failed(call, error))
            return reply
        reply = _Bounded(stepping)

        def stepped(stepping: asyncio.Future[Any]) -> None:
            if reply.done():
                return
            try:
                step = _expect(Step, stepping.result(), Stage.STEP)
                reply.set_result(Reply(call.id, _encoded(step, Stage.STEP), step.ended, stuck=self.stuck))
            except FailureError as error:
                reply.set_result(self._failed(call, error))

        stepping.add_done_callback(stepped)
        return reply

    async def _answered(self, call: WorkerCall) -> Reply:
        try:
            return Reply(call.id, await self._do(call), stuck=self.stuck)
        except FailureError as error:
            return self._failed(call, error)

    def _failed(self, call: WorkerCall, error: FailureError) -> Reply:
        if error.__cause__ is not None and error.failure.kind is not FailureKind.CANCELLED:
            log.warning("%s", _where(call), exc_info=error.__cause__)
        return Reply(call.id, failure=error.failure, stuck=self.stuck)

    async def _do(self, call: WorkerCall) -> str:
        request, deadline = call.request, call.deadline
        if isinstance(request, Open):
            task = request.origin or request.task
            if task is None:
                raise FailureError.of(FailureKind.REJECTED, Stage.RESET, "give a task or its place")
            observation, task_id = await self.open(request.episode, task, request.seed, deadline)
            return _encoded(Opened(observation, task_id), Stage.RESET)
        if isinstance(request, Fork):
            return "{}" if await self.fork(request.source, request.episode, deadline) else ""
        if isinstance(request, Close):
            await self.close(request.episode, deadline)
        elif isinstance(request, ReadTasks):
            size, tasks = await self.page(request.split, request.start, request.count, deadline)
            public = [PublicTask.of(t, TaskOrigin(request.split, request.start + i)) for i, t in enumerate(tasks)]
            return _encoded(TaskPage(request.split, request.start, size, tuple(public)), Stage.TASKS)
        elif isinstance(request, Describe):
            cls = self.bound.cls
            name = cls.__name__ if ":" in self.spec else self.spec  # a spec may be a path, which is nobody's business
            about = one_line((cls.__doc__ or "").strip().partition("\n\n")[0])
            described = Metadata(name, about, cls.version, await self.sizes(deadline), places=self.bound.places)
            return _encoded(described, Stage.TASKS)
        return ""

    async def open(
        self, episode: str, task: Task | TaskOrigin, seed: int | None, deadline: float
    ) -> tuple[Observation, str]:
        """Make an environment for `episode` and reset it; what it shows, and the task's id.

        Without a seed, the task's own or 0.
        """
        live = self._live[episode] = _Live(None, task if isinstance(task, Task) else None)

        async def begin() -> Observation:
            found = task if isinstance(task, Task) else await self._find(task, deadline)
            live.task = found
            live.env = self._judging(self.bound())
            chosen = seed if seed is not None else found.seed or 0
            return await live.env.reset(found, seed=chosen)

        observation = _expect(Observation, await self._bounded(Stage.RESET, deadline, begin, live), Stage.RESET)
        assert live.task is not None  # it was begun with
        return observation, live.task.id

    async def fork(self, source: str, episode: str, deadline: float) -> bool:
        """Whether the environment of `source` has made another, which is that of `episode` now."""
        live, env = self._found(source, Stage.RESET)
        made = _Live(None, live.task)
        self._live[episode] = made
        forked = await self._bounded(Stage.RESET, deadline, env.fork, made)
        if forked is None:
            del self._live[episode]
            return False
        if not isinstance(forked, Environment) or forked is env:
            raise invalid("an environment's fork must give another environment, or None", Stage.RESET)
        made.env = self._judging(forked)
        return True

    async def step(self, episode: str, action: Action, deadline: float) -> Step:
        """Step the environment of `episode`."""
        return _expect(Step, await self._stepping(episode, action, deadline), Stage.STEP)

    def _stepping(self, episode: str, action: Action, deadline: float) -> asyncio.Future[Any]:
        live, env = self._found(episode, Stage.STEP)
        return self._bounded(Stage.STEP, deadline, lambda: env.step(action), live)

    async def close(self, episode: str, deadline: float) -> None:
        """Cancel what `episode` is doing and close its environment; one that is unknown is closed already."""
        live = self._live.pop(episode, None)
        if live is None:
            return
        if live.running is not None and not live.running.done():
            live.running.cancel()
            if not (await asyncio.wait({live.running}, timeout=CANCEL_GRACE_S))[0]:
                self._goes_on(live.running)
        if live.env is not None:
            await self._bounded(Stage.CLOSE, deadline, live.env.close, live)

    async def close_all(self, deadline: float) -> None:
        """Close every environment; one that cannot be closed is logged and let go."""
        results = await asyncio.gather(*(self.close(e, deadline) for e in list(self._live)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.warning("an environment was not closed: %s", result)
        await self._verifiers.close()
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)

    async def page(self, split: str, start: int, count: int, deadline: float) -> tuple[int | None, list[Task]]:
        """The size of `split` (None: endless) and its tasks `start` to `start + count`, references included."""

        def read() -> tuple[int | None, list[Task]]:
            source = self._source(split)
            size = size_of(source)
            end = start + count if size is None else min(size, start + count)
            return size, [_expect(Task, source[i], Stage.TASKS) for i in range(start, end)]

        return await self._read(read, deadline)

    async def sizes(self, deadline: float) -> dict[str, int | None]:
        """The number of tasks of each split, None where endless."""
        splits = self.bound.cls.splits
        return await self._read(lambda: {split: size_of(self._source(split)) for split in splits}, deadline)

    def _found(self, episode: str, stage: Stage) -> tuple[_Live, Environment]:
        live = self._live.get(episode)
        if live is None or live.env is None:
            raise FailureError.of(FailureKind.LOST, stage, f"this process has no environment for episode {episode}")
        return live, live.env

    def _judging(self, env: Environment) -> Environment:
        """The same environment, which shares its verifiers with the others here."""
        if isinstance(env, JudgingEnv):
            env.verifiers = self._verifiers
        return env

    async def _find(self, origin: TaskOrigin, deadline: float) -> Task:
        size, found = await self.page(origin.split, origin.index, 1, deadline)
        if not found:
            message = f"split {origin.split!r} has {size} tasks: there is none at index {origin.index}"
            raise FailureError.of(FailureKind.REJECTED, Stage.TASKS, message)
        return found[0]

    def _source(self, split: str) -> TaskSource:
        if split not in self._sources:
            self._sources[split] = self.bound.tasks(split)
        return self._sources[split]

    async def _read(self, read: Callable[[], T], deadline: float) -> T:
        """Run `read` in the one thread that touches task sources, so that a slow one delays no step."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="tasks")
        future = asyncio.get_running_loop().run_in_executor(self._reader, read)
        try:
            await asyncio.wait({future}, timeout=_left(deadline))
        finally:  # this may be cancelled at the same deadline, from further out
            if not future.done() and not _left(deadline):
                self._late.add(future)
                future.add_done_callback(self._late.discard)
        if not future.done():
            raise FailureError.of(FailureKind.TIMEOUT, Stage.TASKS, "reading the tasks took too long")
        try:
            return future.result()
        except QuintainError as error:
            raise FailureError.of(FailureKind.REJECTED, Stage.TASKS, str(error)) from None
        except FailureError:
            raise
        except Exception as error:  # the boundary; the message might quote any task's reference
            message = f"{type(error).__name__} in {self.bound.cls.__name__}.tasks: the environment's log has the rest"
            raise FailureError.of(FailureKind.CRASHED, Stage.TASKS, message) from error

    def _bounded(self, stage: Stage, deadline: float, run: Callable[[], Awaitable[T]], live: _Live) -> _Bounded[T]:
        """What `run` comes to, or a FailureError: at the deadline, or a moment after, if it does not end then."""
        loop = asyncio.get_running_loop()
        live.running = task = loop.create_task(_contained(run))
        outcome = _Bounded[T](task)

        def overdue() -> None:
            task.cancel()
            timers.append(loop.call_later(CANCEL_GRACE_S, given_up))

        def given_up() -> None:
            self._goes_on(task)
            late()

        def late() -> None:
            if not outcome.done():
                failure = Failure.of(FailureKind.TIMEOUT, stage, f"the environment's {stage} took too long")
                outcome.set_exception(FailureError(failure))

        def ended(task: asyncio.Task[T]) -> None:
            for timer in timers:
                timer.cancel()
            if len(timers) > 1:
                late()
            if outcome.done():
                return
            try:
                outcome.set_result(task.result())
            except (Exception, asyncio.CancelledError) as error:  # the boundary
                failure = _discreet(_failure_of(error, stage), error, live.task)
                failed = FailureError(_located(failure, error, self.bound.cls))  # a line's number is no reference
                failed.__cause__ = error
                outcome.set_exception(failed)

        timers = [loop.call_at(deadline, overdue)]
        task.add_done_callback(ended)
        return outcome

    def _goes_on(self, task: asyncio.Task[Any]) -> None:
        """Keep an eye on code that was cancelled and does not end."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._stuck.discard(task)
            if not task.cancelled() and task.exception() is not None:
                log.warning("code that was cancelled has ended late: %r", task.exception())

        self._stuck.add(task)
        task.add_done_callback(ended)


async def _contained(run: Callable[[], Awaitable[T]]) -> T:
    try:
        return await run()
    except (SystemExit, KeyboardInterrupt) as error:  # would end this whole process and every other episode
        raise RuntimeError(f"the environment raised {type(error).__name__}") from error


def _failure_of(error: BaseException, stage: Stage) -> Failure:
    failure = failure_from(error, stage)
    # a broken contract is noticed where the object is made, which cannot know what it is made for
    return replace(failure, stage=stage) if failure.kind is FailureKind.INVALID else failure


def _located(failure: Failure, error: BaseException, cls: type[Environment]) -> Failure:
    """`failure` with the line of the class's own file in which it arose: no stack, and no folder."""
    if failure.kind is not FailureKind.CRASHED:
        return failure
    file = sys.modules[cls.__module__].__file__
    line = last_line(error, file)
    return replace(failure, message=f"{failure.message} ({Path(file).name}:{line})") if file and line else failure


def _discreet(failure: Failure, error: BaseException, task: Task | None) -> Failure:
    """`failure` without its message where that quotes the reference of `task`."""
    said = failure.message.casefold()
    if task is None or not any(leaf.casefold() in said for leaf in _leaves(task.reference)):
        return failure
    return replace(failure, message=f"{type(error).__name__} (its message quotes the reference: see the log)")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _leaves(part)
    elif value is not None and not isinstance(value, bool) and str(value).strip():
        yield str(value).strip()


def _expect(kind: type[T], value: Any, stage: Stage) -> T:
    if not isinstance(value, kind):
        raise invalid(f"the environment's {stage} must give a {kind.__name__}, not a {type(value).__name__}", stage)
    return value


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _encoded(value: Any, stage: Stage) -> str:
    try:
        return to_json(value)
    except (QuintainError, ValueError) as error:
        raise invalid(f"what the environment's {stage} gave cannot be sent as JSON: {error}", stage) from error


def _where(call: WorkerCall) -> str:
    episode = getattr(call.request, "episode", None)
    return f"{stage_of(call.request)} failed" + (f" in episode {episode}" if episode else "")


async def serve(sock: socket.socket, host: Host) -> None:
    """Answer the calls that come on `sock` until it closes."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    answering: set[asyncio.Future[Reply]] = set()

    def written(done: asyncio.Future[Reply]) -> None:
        answering.discard(done)
        if not done.cancelled():
            writer.write(framed(done.result()))  # never waits: the front reads on, whatever it does

    while (call := await receive(reader, WorkerCall)) is not None:
        answer = host.answer(call)
        answering.add(answer)
        answer.add_done_callback(written)
    await host.close_all(time.monotonic() + CLOSE_ALL_S)
    writer.close()


async def refuse(sock: socket.socket, message: str) -> None:
    """Answer the first call on `sock` with a failure that says `message`: there is nothing to serve."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    if (call := await receive(reader, WorkerCall)) is not None:
        failure = Failure.of(FailureKind.REJECTED, Stage.REQUEST, message)
        writer.write(framed(Reply(call.id, failure=failure)))
    writer.close()
    await writer.wait_closed()
