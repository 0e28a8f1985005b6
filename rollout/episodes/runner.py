"""The runner: runs episodes, each in a place of the gate, and ends those that take far too long if that is wanted.

Invariants:
- an episode that was launched comes back as a trajectory, whatever breaks; only cancellation loses it;
- its place is free again when its task is over, and not before what its caller does with the trajectory is done;
- a hung environment or engine holds one place and nothing else: no other episode waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from quintain.codec import pack
from quintain.envs.base import Environment
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Engine
from quintain.rollout.episodes.episode import Cutoff, EpisodeSpec, run_episode
from quintain.rollout.episodes.gate import EpisodeCount, Gate, Key, Ticket
from quintain.rollout.rules.concurrency import Concurrency
from quintain.rollout.rules.plan import Plan
from quintain.trajectory import Trajectory

LOOK_S = 1.0
"""How often the engine's load (which is itself as old as that) and the stragglers are looked at."""

PACKED_AT_ONCE_TOKENS = 2048
"""Packing a trajectory of more takes longer than a thread costs."""

LimitOf = Callable[[Key], float]
"""How many seconds the training episode at (place, member) may take."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """An episode that came back: how long it had its place, in all attempts, and whether it was ended as too slow.

    `packed` is the trajectory where packing it took a thread: nobody packs it again.
    """

    trajectory: Trajectory
    elapsed_s: float
    straggler: bool
    packed: bytes | None = None


class _Job:
    """An episode on its way: its place, what ends it early, and when it got its place."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.cutoff = ticket, Cutoff()
        self.since: float | None = None
        self.task: asyncio.Task[None] | None = None


class Runner:
    """Runs the episodes of one plan; `failures` (by kind and stage) and `forks` count what came back."""

    def __init__(
        self,
        plan: Plan,
        *,
        engine: Engine,
        chat: Chat,
        make_env: Callable[[str], Environment],
        running: EpisodeCount,
        limit_of: LimitOf,
    ) -> None:
        self.plan, self.engine, self.chat, self.make_env = plan, engine, chat, make_env
        self.failures: Counter[str] = Counter()
        self.forks: Counter[str] = Counter()
        self._concurrency = Concurrency(1, plan.max_concurrency, plan.max_concurrency)
        if plan.follow_engine:
            self._concurrency = Concurrency.begin(plan.max_concurrency, least=plan.members, engine=engine.stats())
        places = {played.split.environment: played.places for played in plan.plays}
        self.gate = Gate(self._concurrency.limit, running, places)
        self._limit_of = limit_of
        self._jobs: dict[Key, _Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._outside = 0  # episodes outside the journal so far

    def __contains__(self, key: Key) -> bool:
        """Whether the training episode at (place, member) is running or waits for its place."""
        return key in self._jobs

    def launch(self, key: Key, spec: EpisodeSpec, then: Callable[[Finished], None]) -> None:
        """Run a training episode as soon as there is a place, then hand it to `then`."""
        job = _Job(self.gate.ask(key, spec.environment))
        self._jobs[key] = job

        async def run() -> None:
            finished = await self._play(spec, job)
            if finished.trajectory.output_tokens > PACKED_AT_ONCE_TOKENS:
                finished = replace(finished, packed=await asyncio.to_thread(pack, finished.trajectory))
            then(finished)

        self._spawn(run(), job).add_done_callback(lambda _: self._forget(key, job))

    async def run(self, specs: Sequence[EpisodeSpec], progress: Callable[[int], None]) -> list[Trajectory]:
        """Run episodes outside the journal, before all that wait, since somebody waits; in order of `specs`."""
        rows: dict[int, Trajectory] = {}

        async def one(at: int, job: _Job) -> None:
            rows[at] = (await self._play(specs[at], job)).trajectory
            progress(len(rows))

        jobs = [_Job(self.gate.ask((-1, self._outside + at), spec.environment)) for at, spec in enumerate(specs)]
        self._outside += len(specs)
        tasks = [self._spawn(one(at, job), job) for at, job in enumerate(jobs)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [rows[at] for at in range(len(specs))]

    def recall(self) -> None:
        """Cancel every training episode; each may be launched again at once."""
        for job in self._jobs.values():
            if job.task is not None:
                job.task.cancel()
        self._jobs.clear()

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [*self._tasks, *([self._watch] if self._watch is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _play(self, spec: EpisodeSpec, job: _Job) -> Finished:
        await job.ticket.wait()
        clock = asyncio.get_running_loop().time
        job.since = clock()
        trajectory = await run_episode(
            spec,
            make_env=partial(self.make_env, spec.environment),
            engine=self.engine,
            chat=self.chat,
            clock=clock,
            cutoff=job.cutoff,
        )
        if trajectory.failure is not None:
            self.failures[f"{trajectory.failure.kind}/{trajectory.failure.stage}"] += 1
        self.forks.update(turn.fork for turn in trajectory.turns if turn.fork)
        cut = trajectory.failure is not None and job.cutoff.reason is not None
        return Finished(trajectory, clock() - job.since, cut)

    def _spawn(self, work: Coroutine[Any, Any, None], job: _Job) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        job.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, job))
        if self._watch is None and (self.plan.follow_engine or self.plan.patience is not None):
            self._watch = asyncio.get_running_loop().create_task(self._look())
        return task

    def _ended(self, task: asyncio.Task[None], job: _Job) -> None:
        """Also for a task that was cancelled before it ever ran."""
        self._tasks.discard(task)
        job.ticket.release()
        self.engine.kick()

    def _forget(self, key: Key, job: _Job) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]

    async def _look(self) -> None:
        """Look at the engine and at the clock, now and then, for as long as there is somebody to look after."""
        clock = asyncio.get_running_loop().time
        while self._tasks:
            await asyncio.sleep(LOOK_S)
            if self.plan.follow_engine:
                self._concurrency = self._concurrency.observe(self.engine.stats(), self.gate.held)
                if self.gate.limit != self._concurrency.limit:
                    self.gate.limit = self._concurrency.limit
            for key, job in self._jobs.items():
                if job.since is not None and (took := clock() - job.since) > (limit := self._limit_of(key)):
                    job.cutoff.end(
                        f"{took:.1f} s is far longer than its finished peers took: the limit is {limit:.1f} s"
                        " (rollout.straggler: fail)"
                    )
        self._watch = None
