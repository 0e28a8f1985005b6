"""Runs: tasks that a client hands in and whose groups it fetches, outside the journal.

Invariants:
- a group is told to whoever reads from a cursor before it, in the order of finishing, until the run is forgotten;
- at most `runs` are under way and `episodes` waiting or running in all; beyond that a request is refused (429);
- results are bounded: while what nobody has fetched fills `result_bytes`, no further group is started;
- a run that nobody asks about for `lease_s` is cancelled and forgotten, so a client that vanishes costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from quintain.codec import pack
from quintain.failure import Failure, FailureKind, Stage
from quintain.nearest import IDENTIFIER, one_of
from quintain.rollout.engines.base import Sampling
from quintain.rollout.rules.order import derive_seed
from quintain.rollout.scheduler import Plan, Scheduler, task_of
from quintain.rollout.wire import RunRequest, RunState, TaskRunStatus
from quintain.serving.refusals import refused

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How much the clients of a server may ask for."""

    runs: int = 64
    episodes: int = 100_000
    samples: int = 4096  # of one task
    kept: int = 10_000  # runs that have ended and were not forgotten, among them
    result_bytes: int = 512 << 20
    lease_s: float = 3600.0


class TaskRun:
    """One run. `changed` is set, and replaced, whenever something new can be said of it."""

    def __init__(self, name: str, request: RunRequest, sampling: Sampling, now: float) -> None:
        self.name, self.request, self.sampling, self.touched = name, request, sampling, now
        self.digest = digest_of(request)
        self.groups = len(request.indices) + len(request.tasks)
        self.total = self.groups * request.samples
        self.done = 0
        self.state = RunState.RUNNING
        self.failure: Failure | None = None
        self.job: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class TaskRuns:
    """The runs of one server. `clock` (seconds) is for leases only."""

    def __init__(self, scheduler: Scheduler, limits: RunLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.results = Results(limits.result_bytes)
        self._scheduler, self._clock = scheduler, clock
        self._runs: dict[str, TaskRun] = {}

    @property
    def under_way(self) -> int:
        """Runs that have not ended."""
        return sum(run.state is RunState.RUNNING for run in self._runs.values())

    @property
    def episodes_left(self) -> int:
        """Episodes of runs under way that have not ended."""
        return sum(run.total - run.done for run in self._runs.values() if run.state is RunState.RUNNING)

    def submit(self, request: RunRequest) -> TaskRunStatus:
        """Begin a run. Raises Refused for what makes no sense (400), or does not fit now (429)."""
        sampling = check_request(request, self._scheduler.plan, self.limits)
        if request.run in self._runs:
            if self._runs[request.run].digest != digest_of(request):
                message = f"the run {request.run} exists with another request: choose another name"
                raise refused(message, Stage.REQUEST, status=409)
            return self.status(request.run)
        episodes = (len(request.indices) + len(request.tasks)) * request.samples
        if self.under_way >= self.limits.runs:
            raise _full(f"{self.limits.runs} runs are under way")
        if self.episodes_left + episodes > self.limits.episodes:
            raise _full(f"{self.episodes_left} episodes wait or run, and {self.limits.episodes} is the most")
        if len(self._runs) >= self.limits.kept:
            raise _full(f"{self.limits.kept} runs are kept, forget (DELETE) those that are fetched")
        run = TaskRun(request.run or uuid.uuid4().hex, request, sampling, self._clock())
        self._runs[run.name] = run
        self.results.open(run.name)
        run.job = asyncio.create_task(self._work(run))
        return self.status(run.name)

    def status(self, name: str) -> TaskRunStatus:
        """Where a run stands; this renews its lease. Raises Refused (404)."""
        run = self._find(name)
        return TaskRunStatus(
            name,
            run.state,
            run.done,
            run.total,
            self.results.count(name),
            run.groups,
            self.results.kept_from(name),
            run.failure,
        )

    async def wait(self, name: str, cursor: int, until: float) -> None:
        """Return when there is a group at `cursor`, or the run has ended, or at the loop's time `until`.

        Raises Refused (404) for a run, or a group of it, that is not kept.
        """
        while True:
            run = self._find(name)
            if run.state is not RunState.RUNNING or self.results.count(name) > cursor:
                return
            try:
                async with asyncio.timeout_at(until):
                    await run.changed.wait()
            except TimeoutError:
                return

    def group(self, name: str, cursor: int) -> bytes | None:
        """The packed group at `cursor`, or None where it has not finished. Raises Refused (404) where forgotten."""
        self._find(name)
        if cursor < (kept := self.results.kept_from(name)):
            message = f"groups before {kept} of run {name} were acknowledged by a later cursor and forgotten"
            raise refused(message, Stage.REQUEST, FailureKind.LOST)
        return self.results.get(name, cursor)

    def acknowledge(self, name: str, cursor: int) -> None:
        """A reader has the first `cursor` groups: they may be forgotten. Raises Refused (404, or 400 beyond them)."""
        self._find(name)
        if not 0 <= cursor <= self.results.count(name):
            message = f"cursor: run {name} has finished {self.results.count(name)} groups, {cursor} is no place in them"
            raise refused(message, Stage.REQUEST, status=400)
        self.results.acknowledge(name, cursor)
        self._free()

    async def cancel(self, name: str) -> TaskRunStatus:
        """End a run; its finished groups stay. Returns when its episodes have ended. Raises Refused (404)."""
        run = self._find(name)
        if run.job is not None and not run.job.done():
            run.job.cancel()
            await asyncio.wait([run.job])
            if run.state is RunState.RUNNING:  # it had not even begun
                run.state = RunState.CANCELLED
        return self.status(name)

    async def forget(self, name: str) -> TaskRunStatus:
        """End a run and forget its groups. Raises Refused (404)."""
        status = await self.cancel(name)
        if self._runs.pop(name, None) is not None:  # another may have forgotten it while its episodes ended
            self.results.close(name)
            self._free()
        return status

    async def sweep(self) -> None:
        """Forget the runs whose lease has run out."""
        now = self._clock()
        for run in [run for run in self._runs.values() if now - run.touched >= self.limits.lease_s]:
            log.warning("nobody asked about run %s for %g s: it is forgotten", run.name, self.limits.lease_s)
            await self.forget(run.name)

    async def close(self) -> None:
        """End every run."""
        for name in list(self._runs):
            await self.forget(name)

    async def _work(self, run: TaskRun) -> None:
        # as many again as can run wait for a place, so that neither a slow group nor this loop leaves one empty
        ahead = 2 * self._scheduler.plan.max_concurrency
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(run.groups):
                    while not self.results.room or place * run.request.samples - run.done >= ahead:
                        await run.changed.wait()
                    group.create_task(self._one(run, place))
            run.state = RunState.DONE
        except asyncio.CancelledError:
            run.state = RunState.CANCELLED
        except Exception:  # the boundary: failed episodes are trajectories, so this is a mistake of ours
            log.exception("run %s failed", run.name)
            message = "the server made a mistake: its log says which"
            run.state, run.failure = RunState.FAILED, Failure.of(FailureKind.CRASHED, Stage.GENERATE, message)
        run.request = replace(run.request, indices=(), tasks=())  # they may be megabytes, and the run is kept a while
        run.tell()

    async def _one(self, run: TaskRun, place: int) -> None:
        request, before = run.request, 0

        def progress(done: int) -> None:
            nonlocal before
            run.done += done - before
            before = done
            run.tell()

        of: tuple[int | str, ...]
        if place < len(request.indices):
            assert request.split is not None  # checked
            index = request.indices[place]
            name, task, of = f"{request.split}-{index}", task_of(request.split, index), (request.split, index)
        else:
            index = place - len(request.indices)
            task = request.tasks[index]
            name, of = f"{run.name}-{index}", ("task", task.id, index)
        group = await self._scheduler.run_task(
            name,
            task,
            index,
            [derive_seed(request.seed, *of, member) for member in range(request.samples)],
            sampling=run.sampling,
            environment=request.environment,
            progress=progress,
        )
        packed = await asyncio.to_thread(pack, group)  # it takes milliseconds, and other episodes go on meanwhile
        self.results.put(run.name, packed)
        run.tell()

    def _find(self, name: str) -> TaskRun:
        run = self._runs.get(name)
        if run is None:
            message = f"there is no run {name[:64]!r}: it was forgotten, or this server has been started again"
            raise refused(message, Stage.GENERATE, FailureKind.LOST)
        run.touched = self._clock()
        return run

    def _free(self) -> None:
        if self.results.room:
            for run in self._runs.values():
                run.tell()


def check_request(request: RunRequest, plan: Plan, limits: RunLimits) -> Sampling:
    """How `request` samples. Raises Refused (400) with the field that makes no sense."""

    def check(holds: bool, message: str) -> None:
        if not holds:
            raise refused(message, Stage.REQUEST, status=400)

    check(bool(request.indices or request.tasks), "give indices of a split, or tasks in full")
    check(not request.indices or request.split is not None, "split: say of which split the indices are")
    check(all(index >= 0 for index in request.indices), f"indices: at least 0, not {min(request.indices, default=0)}")
    check(1 <= request.samples <= limits.samples, f"samples: 1 to {limits.samples}, not {request.samples}")
    check(
        request.run is None or bool(IDENTIFIER.fullmatch(request.run)), "run: 1 to 64 letters, digits, '_', '-' or '.'"
    )
    played = plan.played(request.environment)
    if played is None:
        known = [split.environment for split in plan.splits]
        problem = f"environment: the run plays no {request.environment!r}{one_of(request.environment or '', known)}"
        raise refused(problem, Stage.REQUEST, status=400)
    base = played.sampling
    sampling = replace(
        base,
        temperature=base.temperature if request.temperature is None else request.temperature,
        top_p=base.top_p if request.top_p is None else request.top_p,
        top_k=base.top_k if request.top_k is None else request.top_k,
        max_tokens=base.max_tokens if request.max_tokens is None else request.max_tokens,
    )
    check(0 <= sampling.temperature <= 10, f"temperature: 0 to 10, not {sampling.temperature}")
    check(0 < sampling.top_p <= 1, f"top_p: above 0, up to 1, not {sampling.top_p}")
    check(sampling.top_k >= 0, f"top_k: at least 0 (off), not {sampling.top_k}")
    check(1 <= sampling.max_tokens <= plan.max_length, f"max_tokens: 1 to {plan.max_length}, not {sampling.max_tokens}")
    return sampling


def digest_of(request: RunRequest) -> bytes:
    """The same for the same request."""
    return hashlib.blake2b(pack(request), digest_size=16).digest()


def _full(what: str) -> Exception:
    return refused(f"{what}: try again later", Stage.REQUEST, FailureKind.OVERLOADED)


@dataclass(slots=True)
class _Shelf:
    kept_from: int = 0
    acknowledged: int = 0
    groups: list[bytes] = field(default_factory=list)  # from `kept_from` on

    @property
    def count(self) -> int:
        return self.kept_from + len(self.groups)


class Results:
    """What finished and has not been fetched: packed groups by run and place, at most about `limit_bytes` of them.

    - A group that no reader has acknowledged is forgotten only with its whole run.
    - Acknowledged ones are kept while there is room, so that a reader may go back, and go first when there is none.
    - `room` is false exactly while what is not acknowledged is as large as the bound: then nothing new may be started,
      and memory grows by no more than what is already in flight.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._shelves: dict[str, _Shelf] = {}
        self._unread_bytes = 0
        self.held_bytes = 0

    @property
    def room(self) -> bool:
        """Whether more groups may be started."""
        return self._unread_bytes < self._limit

    def open(self, run: str) -> None:
        """A run begins."""
        self._shelves[run] = _Shelf()

    def put(self, run: str, group: bytes) -> None:
        """The next group of `run` has finished."""
        self._shelves[run].groups.append(group)
        self._unread_bytes += len(group)
        self.held_bytes += len(group)
        self._tidy()

    def acknowledge(self, run: str, cursor: int) -> None:
        """A reader has the first `cursor` groups."""
        shelf = self._shelves[run]
        cursor = min(cursor, shelf.count)
        for place in range(shelf.acknowledged, cursor):
            self._unread_bytes -= len(shelf.groups[place - shelf.kept_from])
        shelf.acknowledged = max(shelf.acknowledged, cursor)
        self._tidy()

    def get(self, run: str, place: int) -> bytes | None:
        """The group at `place`, counted in the order of finishing. None where it has not finished, or is forgotten."""
        shelf = self._shelves[run]
        return shelf.groups[place - shelf.kept_from] if shelf.kept_from <= place < shelf.count else None

    def count(self, run: str) -> int:
        """How many groups of `run` have finished, forgotten ones too."""
        return self._shelves[run].count

    def kept_from(self, run: str) -> int:
        """The first place that is kept."""
        return self._shelves[run].kept_from

    def close(self, run: str) -> None:
        """Forget `run` and all of its groups."""
        shelf = self._shelves.pop(run)
        self.held_bytes -= sum(map(len, shelf.groups))
        self._unread_bytes -= sum(map(len, shelf.groups[max(0, shelf.acknowledged - shelf.kept_from) :]))

    def _tidy(self) -> None:
        for shelf in self._shelves.values():
            while self.held_bytes > self._limit and shelf.kept_from < shelf.acknowledged:
                self.held_bytes -= len(shelf.groups.pop(0))
                shelf.kept_from += 1
