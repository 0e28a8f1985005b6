"""The live episodes of a server: slots, deadlines, leases and stored answers, around a backend that runs them.

What always holds:
- at most `max_episodes` have an environment at a time, or as many as the backend has places for; the others wait in
  the order in which they came, and where several tokens' holders wait, those take turns;
- of one token at most `token_episodes` are live or wait;
- a slot is free again once its episode has ended, failed, been closed, or been left alone for its lease;
- a turn is run once, whoever asks how often (`quintain.envs.serving.episode` decides, this acts);
- the answers that ended episodes keep for retries are bounded, in number and in bytes;
- what a client has begun goes on though the client hangs up: the answer is stored for when it asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from quintain.envs.base import fault_in
from quintain.envs.serving.episode import Episode, EpisodeState, PlayTurn, Refuse, Replay
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.serving.wire import MAX_TASKS, CreateEpisode, EpisodeStatus, ForkRequest, StepRequest
from quintain.envs.workers.frames import Advance, Close, Describe, Fork, Open, ReadTasks, Reply, Request, stage_of
from quintain.envs.workers.pool import Backend
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.nearest import IDENTIFIER
from quintain.serving.logs import tell
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import refused
from quintain.serving.tokens import ANYBODY
from quintain.slots import Full, Slots
from quintain.task import TaskOrigin

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Record:
    id: str
    holder: str
    request: CreateEpisode
    ticket: asyncio.Future[int] | None
    began: float
    touched: float
    episode: Episode[str] = field(default_factory=Episode)
    opened: str = ""
    failure: FailureError | None = None
    kept_bytes: int = 0  # of its answers, once it has ended
    work: asyncio.Future[Any] | None = None
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)  # while its environment makes another

    @property
    def busy(self) -> bool:
        return self.episode.busy or (self.work is not None and not self.work.done())


class Sessions:
    """Episodes by id. `clock` (seconds) is for leases only."""

    def __init__(
        self,
        backend: Backend,
        limits: EnvironmentLimits,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self._backend, self._metrics, self._clock = limits, backend, metrics, clock
        self._lease = json.dumps(limits.lease_s)
        self._most = limits.token_episodes or math.inf
        self._slots = Slots(range(limits.max_episodes), queue=limits.queue)
        self._held: Counter[str] = Counter()
        self._records: dict[str, _Record] = {}
        self._finished: deque[_Record] = deque()
        self._finished_bytes = 0
        self._background: set[asyncio.Future[Any]] = set()
        self.unclosed = 0
        """Environments whose `close` failed, or came to no end."""
        metrics.counter("episodes_total", "Episodes that came to an end, by how.")
        metrics.counter("failures_total", "Failures, by kind and stage.")
        metrics.counter("replays_total", "Requests answered from what was stored.")
        metrics.summary("call_seconds", "Time in the environment, by operation.")
        metrics.gauge("episodes_live", "Episodes that hold a slot.", lambda: self._slots.taken)
        metrics.gauge("episodes_queued", "Episodes that wait for a slot.", lambda: self._slots.waiting)
        metrics.gauge("episodes_known", "Episodes whose answers are stored.", lambda: len(self._records))
        metrics.gauge("answers_bytes", "Answers of ended episodes that are stored.", lambda: self._finished_bytes)
        metrics.gauge("capacity", "Episodes that may be live at once.", lambda: self._slots.capacity)
        metrics.gauge("workers", "Worker processes, the spare included.", lambda: backend.stats()["workers"])
        metrics.gauge("worker_restarts", "Workers that were replaced.", lambda: backend.stats()["restarts"])

    @property
    def ready(self) -> bool:
        """Whether a new episode would find a place to run."""
        return self._backend.ready

    @property
    def live(self) -> int:
        """Episodes that hold a slot."""
        return self._slots.taken

    async def start(self) -> None:
        """Start the backend. Raises QuintainError where it cannot be."""
        places = await self._backend.start(self._lost)
        if places is not None:
            self._slots = Slots(range(min(places, self.limits.max_episodes)), queue=self.limits.queue)

    def abandon(self) -> None:
        """Answer those who wait for an environment that the server is stopping."""
        for record in list(self._records.values()):
            if record.work is not None:
                record.work.cancel()

    async def stop(self) -> None:
        """End everything."""
        self.abandon()
        await self._backend.stop()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def create(
        self, request: CreateEpisode, holder: str = ANYBODY, *, source: _Record | None = None, turn: int = 0
    ) -> str:
        """Begin an episode for `holder`, where `source` stands after `turn` turns if its environment can do that, or
        answer again for one that the same request began: an `EpisodeCreated` as JSON.
        """
        record = self._records.get(request.episode_id) if request.episode_id else None
        if record is None:
            record = self._begin(request, holder)
            record.work = self._spawn(self._open(record, source, turn))
        elif record.request != request:
            message = f"episode {record.id} was created by another request: choose another id"
            raise refused(message, Stage.RESET, status=409)
        else:
            self._metrics.add("replays_total")
        if record.work is not None:  # it goes on though the one who waits is gone
            await asyncio.wait({record.work})
        if record.episode.state is EpisodeState.CLOSED:
            raise self._conflict(Stage.RESET, "the episode is closed")
        if not record.opened:
            raise record.failure or self._stopping(Stage.RESET)
        return record.opened

    def step(self, episode_id: str, request: StepRequest) -> asyncio.Future[str]:
        """Play a turn, or answer again for one that was played: a `StepAnswer` as JSON. Raises FailureError."""
        record = self._find(episode_id, Stage.STEP)
        episode = record.episode
        decision = episode.ask(request.turn, request.action)
        if isinstance(decision, Refuse):
            if episode.state is EpisodeState.FAILED and record.failure is not None:
                raise refused(record.failure.failure.message, Stage.STEP, record.failure.failure.kind, status=409)
            raise self._conflict(Stage.STEP, decision.reason)
        if isinstance(decision, PlayTurn):
            self._advance(record, request)
        else:
            self._metrics.add("replays_total")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if isinstance(decision, Replay) or record.work is None:
            self._tell(record, request.turn, answer)
        else:  # it goes on though the one who waits is gone
            record.work.add_done_callback(lambda _: self._tell(record, request.turn, answer))
        return answer

    def _tell(self, record: _Record, turn: int, answer: asyncio.Future[str]) -> None:
        """Resolve `answer` with what turn `turn` came to, unless nobody waits for it any longer."""
        record.touched = self._clock()
        episode = record.episode
        if answer.done():
            return
        if episode.state is EpisodeState.CLOSED:
            why = "the episode was closed meanwhile"
            answer.set_exception(self._conflict(Stage.STEP, why, FailureKind.CANCELLED))
        elif turn >= len(episode.answers):
            answer.set_exception(self._stopping(Stage.STEP))
        elif isinstance(said := episode.answers[turn], Failure):
            answer.set_exception(FailureError(said))
        else:
            answer.set_result(said)

    async def fork(self, episode_id: str, request: ForkRequest, holder: str = ANYBODY) -> EpisodeStatus:
        """Begin an episode for `holder` on the same task and seed, and play the first turns of this one in it again;
        where the environment itself can make another in the state it is in, these are played already.

        One that answers otherwise the second time fails: from there on it would be another episode.
        """
        source = self._find(episode_id, Stage.RESET)
        if source.episode.state is EpisodeState.CLOSED:
            raise self._conflict(Stage.RESET, "the episode is closed, and nothing of it is kept")
        if not 0 <= request.turn <= source.episode.turn:
            message = f"turn is from 0 to {source.episode.turn}, the turns that were played, not {request.turn}"
            raise refused(message, Stage.RESET, status=400)
        turns = list(zip(source.episode.actions, source.episode.answers, strict=False))[: request.turn]
        begun = replace(source.request, episode_id=request.episode_id)
        opened = json.loads(await self.create(begun, holder, source=source, turn=request.turn))
        for turn, (action, answer) in enumerate(turns):
            again = await self.step(opened["episode_id"], StepRequest(turn, action))
            if isinstance(answer, Failure) or _said(again) != _said(answer):
                message = f"turn {turn} was answered otherwise when it was played again: it cannot be forked after it"
                forked = self._find(opened["episode_id"], Stage.RESET)
                failure = Failure.of(FailureKind.INVALID, Stage.RESET, message)
                if forked.episode.live:
                    self._fail(forked, failure)
                raise FailureError(failure)
        return self.status(opened["episode_id"])

    def status(self, episode_id: str) -> EpisodeStatus:
        """Where an episode stands; this renews its lease."""
        record = self._find(episode_id, Stage.STEP)
        record.touched = self._clock()
        return self._status(record)

    def tools(self, episode_id: str) -> list[dict[str, Any]]:
        """The tools that an episode began with, as JSON."""
        record = self._find(episode_id, Stage.STEP)
        if not record.opened:
            raise self._conflict(Stage.STEP, "the episode has not begun, or is closed")
        found: list[dict[str, Any]] = json.loads(record.opened)["observation"]["tools"]
        return found

    def close(self, episode_id: str) -> EpisodeStatus:
        """Close an episode, whatever it is doing; closing it again is fine."""
        record = self._find(episode_id, Stage.CLOSE)
        self._close(record, "closed")
        return self._status(record)

    async def tasks(self, split: str, start: int, count: int) -> str:
        """A `TaskPage` as JSON."""
        if start < 0 or not 0 <= count <= MAX_TASKS:
            message = f"start must be at least 0 and count 0 to {MAX_TASKS}, not {start} and {count}"
            raise refused(message, Stage.TASKS, status=400)
        return (await self._call(ReadTasks(split, start, count), self.limits.tasks_s)).body

    async def describe(self) -> str:
        """The `Metadata` as JSON."""
        about = json.loads((await self._call(Describe(), self.limits.tasks_s)).body)
        return json.dumps(about | {"places": min(self._slots.capacity, self._most)})

    def sweep(self) -> None:
        """Close the episodes whose lease has run out, and forget those that ended so long ago."""
        now = self._clock()
        for record in list(self._records.values()):
            if record.busy or now - record.touched < self.limits.lease_s:
                continue
            self._close(record, "expired")
            del self._records[record.id]

    def _begin(self, request: CreateEpisode, holder: str) -> _Record:
        if request.episode_id is not None and not IDENTIFIER.fullmatch(request.episode_id):
            message = f"an episode_id is 1 to 64 letters, digits, '_', '-' or '.', not {request.episode_id!r}"
            raise refused(message, Stage.RESET, status=400)
        if (request.task is None) == (request.split is None) or (request.split is None) != (request.index is None):
            raise refused("give a task, or a split and an index", Stage.RESET, status=400)
        if request.index is not None and request.index < 0:
            raise refused(f"a task's index is at least 0, not {request.index}", Stage.RESET, status=400)
        for fault in filter(None, map(fault_in, request.task.prompt if request.task is not None else ())):
            raise refused(f"the task's prompt: {fault}", Stage.RESET, status=400)
        if self._held[holder] >= self._most:
            raise self._busy(f"this token has {self._most} episodes open, and may have no more: end or close one")
        try:
            ticket = self._slots.take(holder)
        except Full:
            message = f"all {self._slots.capacity} slots are taken and {self._slots.waiting} episodes wait"
            raise self._busy(message) from None
        now = self._clock()
        record = _Record(request.episode_id or uuid.uuid4().hex, holder, request, ticket, now, now)
        self._held[holder] += 1
        self._records[record.id] = record
        return record

    async def _open(self, record: _Record, source: _Record | None, turn: int) -> None:
        request, ticket = record.request, record.ticket
        assert ticket is not None  # it was just taken
        await asyncio.wait({ticket}, timeout=self.limits.queue_s)
        if not ticket.done():
            record.failure = self._busy(f"no slot came free within {self.limits.queue_s:g} s")
            del self._records[record.id]  # as if it had never been: the client may ask again
            self._held[record.holder] -= 1
            self._let_go(record)
            return
        if record.episode.state is EpisodeState.CLOSED:
            return
        if source is not None and await self._forked(record, source, turn):
            return
        origin = None if request.split is None else TaskOrigin(request.split, request.index or 0)
        reply = await self._timed(Open(record.id, request.task, origin, request.seed), self.limits.reset_s)
        record.touched = self._clock()
        if record.episode.state is not EpisodeState.CREATED:
            return
        if reply.failure is not None:
            self._fail(record, reply.failure)
            return
        record.episode.opened()
        record.opened = self._answer(record, reply.body)

    async def _forked(self, record: _Record, source: _Record, turn: int) -> bool:
        """Whether `record` is an episode where `source` stands, or has failed to be; if not, it is opened as any other.

        `source` stands after `turn` turns if this is so: what comes meanwhile waits.
        """
        async with source.alone:
            told = source.episode
            if told.state is not EpisodeState.RUNNING or told.busy or told.turn != turn:
                return False
            opened, actions, answers = source.opened, list(told.actions), list(told.answers)
            reply = await self._timed(Fork(record.id, source.id), self.limits.reset_s)
        record.touched = self._clock()
        if record.episode.state is not EpisodeState.CREATED:
            return True
        if reply.failure is not None:
            self._fail(record, reply.failure)
        elif reply.body:
            record.episode.opened()
            mine = [str(answer).replace(f'"{source.id}"', f'"{record.id}"', 1) for answer in (opened, *answers)]
            record.opened, record.episode.actions, record.episode.answers = mine[0], actions, [*mine[1:]]
        return record.episode.state is not EpisodeState.CREATED

    def _advance(self, record: _Record, request: StepRequest) -> None:
        advance, began = Advance(record.id, request.action), time.monotonic()

        def advanced(work: asyncio.Future[Reply]) -> None:
            self._background.discard(work)
            if work.cancelled():
                return
            reply = self._reply(advance, began, work)
            record.touched = self._clock()
            if record.episode.state is not EpisodeState.RUNNING:
                return
            if reply.failure is not None:
                self._fail(record, reply.failure)
                return
            turn, state = request.turn + 1, EpisodeState.DONE if reply.ended else EpisodeState.RUNNING
            record.episode.answered(self._answer(record, reply.body, turn, state), ended=reply.ended)
            if reply.ended:
                self._end(record, "done", turn)

        async def after_forking() -> Reply:
            async with record.alone:
                return await self._backend.call(advance, time.monotonic() + self.limits.step_s)

        forking = record.alone.locked()
        reply = after_forking() if forking else self._backend.call(advance, began + self.limits.step_s)
        record.work = asyncio.ensure_future(reply)
        self._background.add(record.work)
        record.work.add_done_callback(advanced)  # the first to be told: whoever waits for the turn finds its answer

    def _answer(self, record: _Record, body: str, turn: int = 0, state: EpisodeState = EpisodeState.RUNNING) -> str:
        # what the environment says is passed on unread; an id has nothing that JSON would escape
        head = f'"episode_id": "{record.id}", "turn": {turn}, "state": "{state}", "lease_s": {self._lease}'
        return f"{{{head}, {body[1:]}"

    def _fail(self, record: _Record, failure: Failure) -> None:
        self._metrics.add("failures_total", kind=failure.kind, stage=failure.stage)
        record.episode.failed(failure)
        record.failure = FailureError(failure)
        self._end(record, "failed", record.episode.turn)

    def _lost(self, episodes: Collection[str], failure: Failure) -> None:
        for episode_id in episodes:
            record = self._records.get(episode_id)
            if record is not None and record.episode.live and not record.busy:  # a busy one gets its reply
                self._fail(record, failure)

    def _close(self, record: _Record, how: str) -> None:
        live, turns = record.episode.live, record.episode.turn
        record.episode.close()
        record.opened = ""
        self._free(record)
        if live:
            self._end(record, how, turns)

    def _free(self, record: _Record) -> None:
        """Its answers are stored no longer."""
        self._finished_bytes -= record.kept_bytes
        record.kept_bytes = 0

    def _end(self, record: _Record, how: str, turns: int) -> None:
        """Count the end of a live episode, give its slot back once it is closed, and keep its answers for a while."""
        self._held[record.holder] -= 1
        self._metrics.add("episodes_total", how=how)
        failure = record.failure and f"{record.failure.failure.kind} in {record.failure.failure.stage}"
        elapsed_s = round(self._clock() - record.began, 6)
        tell("episode", id=record.id, holder=record.holder, how=how, turns=turns, failure=failure, elapsed_s=elapsed_s)
        self._spawn(self._dismiss(record))
        self._finished.append(record)
        answers = (answer for answer in record.episode.answers if isinstance(answer, str))
        record.kept_bytes = len(record.opened) + sum(map(len, answers))
        self._finished_bytes += record.kept_bytes
        while len(self._finished) > self.limits.finished or self._finished_bytes > self.limits.finished_bytes:
            oldest = self._finished.popleft()
            self._free(oldest)
            if self._records.get(oldest.id) is oldest:
                del self._records[oldest.id]

    async def _dismiss(self, record: _Record) -> None:
        if record.ticket is not None and record.ticket.done():
            reply = await self._timed(Close(record.id), self.limits.close_s)
            if reply.failure is not None:
                self._metrics.add("failures_total", kind=reply.failure.kind, stage=reply.failure.stage)
                self.unclosed += 1
        self._let_go(record)

    def _let_go(self, record: _Record) -> None:
        ticket, record.ticket = record.ticket, None
        if ticket is not None:
            self._slots.give_back(ticket)

    async def _timed(self, request: Request, within_s: float) -> Reply:
        began = time.monotonic()
        work = asyncio.ensure_future(self._backend.call(request, began + within_s))
        with contextlib.suppress(Exception):  # `_reply` looks at it
            await work
        return self._reply(request, began, work)

    def _reply(self, request: Request, began: float, work: asyncio.Future[Reply]) -> Reply:
        """What `request` came to, and count its time."""
        try:
            reply = work.result()
        except Exception:  # the boundary: a mistake of ours must not leave an episode hanging
            log.exception("%s failed", request.op)
            failure = Failure.of(FailureKind.CRASHED, stage_of(request), "the server made a mistake: see its log")
            reply = Reply(0, failure=failure)
        self._metrics.observe("call_seconds", time.monotonic() - began, op=request.op)
        return reply

    async def _call(self, request: Request, within_s: float) -> Reply:
        reply = await self._timed(request, within_s)
        if reply.failure is not None:
            self._metrics.add("failures_total", kind=reply.failure.kind, stage=reply.failure.stage)
            raise FailureError(reply.failure)
        return reply

    def _find(self, episode_id: str, stage: Stage) -> _Record:
        record = self._records.get(episode_id)
        if record is None:
            message = f"there is no episode {episode_id[:64]!r}: it expired, or this server has been restarted"
            raise refused(message, stage, FailureKind.LOST)
        return record

    def _status(self, record: _Record) -> EpisodeStatus:
        failure = record.failure.failure if record.failure else None
        return EpisodeStatus(record.id, record.episode.turn, record.episode.state, self.limits.lease_s, failure)

    def _conflict(self, stage: Stage, why: str, kind: FailureKind = FailureKind.REJECTED) -> FailureError:
        return refused(why, stage, kind, status=409)

    def _stopping(self, stage: Stage) -> FailureError:
        return refused("the server is stopping", stage, FailureKind.UNREACHABLE)

    def _busy(self, message: str) -> FailureError:
        self._metrics.add("failures_total", kind=FailureKind.OVERLOADED, stage=Stage.RESET)
        return refused(message, Stage.RESET, FailureKind.OVERLOADED)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _said(answer: str) -> dict[str, Any]:
    """What the environment said in an answer."""
    said: dict[str, Any] = json.loads(answer)
    return {name: value for name, value in said.items() if name not in ("episode_id", "lease_s")}
