"""The rollout room's main loop: admit, run, journal, hand over.

Invariants:
- every place of the task order is issued exactly once, and recorded in the journal before it counts;
- what was issued and not recorded when the process died is issued again, with the same seeds;
- nothing is sampled before the first publish, nor between a refused publish and the next accepted one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from quintain.envs.base import Environment
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.rollout.admission import Admission
from quintain.rollout.canary import Canary, Mismatch, check
from quintain.rollout.engines.base import Engine, Sampling, Weights
from quintain.rollout.episode import EpisodeSpec, run_episode
from quintain.rollout.journal import Journal
from quintain.rollout.renderer import Renderer
from quintain.rollout.tasks import derive_seed, task_index
from quintain.task import Task, TaskOrigin
from quintain.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run samples: groups of `members` trajectories, `groups` of them a step."""

    split: str
    size: int | None
    shuffle: bool
    seed: int
    groups: int
    members: int
    max_staleness: int
    max_turns: int
    max_length: int
    attempts: int
    max_concurrency: int
    sampling: Sampling


class EpisodeCount:
    """How many episodes are in flight: any of them may ask the engine to sample. Calling it gives the number."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> int:
        return self.value


class Conductor:
    """Owns the admission state, the journal and the running episodes of one run."""

    def __init__(
        self,
        plan: Plan,
        *,
        engine: Engine,
        renderer: Renderer,
        make_env: Callable[[], Environment],
        journal: Journal,
        running: EpisodeCount | None = None,
    ) -> None:
        self.plan, self.engine, self.renderer, self.make_env, self.journal = (
            plan,
            engine,
            renderer,
            make_env,
            journal,
        )
        self.failures: Counter[str] = Counter()
        self.forks: Counter[str] = Counter()
        self.running = running or EpisodeCount()
        self.fatal: Failure | None = None
        self._slots = asyncio.Semaphore(plan.max_concurrency)
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._publishing = asyncio.Lock()
        self._pending = journal.pending()
        issued = journal.balance().issued
        batch = plan.groups * plan.members
        self._admission = Admission(batch, plan.max_staleness, issued=issued * plan.members)
        self._next_place = issued

    @property
    def version(self) -> int:
        """The version that admission follows; -1 before the first publish."""
        return self._admission.version

    def admit(self, version: int) -> None:
        """Open admission for `version`: start what the staleness rule allows, what a crash left behind first."""
        self._admission = self._admission.advance(version)
        for pending in self._pending:
            self._start(pending.place, pending.task_index, pending.member)
        self._pending = []
        while self._admission.room >= self.plan.members:
            place = self._next_place
            index = task_index(place, self.plan.size, seed=self.plan.seed, shuffle=self.plan.shuffle)
            try:
                self.journal.issue(place, index, version)
            except FailureError as error:
                self.fatal = error.failure
                raise
            self._next_place += 1
            self._admission = self._admission.issue(self.plan.members)
            for member in range(self.plan.members):
                self._start(place, index, member)

    async def publish(self, weights: Weights, canary: Canary, *, admit: bool) -> Mismatch:
        """Pause, load, prove with the canary, resume.

        Where the load fails the old weights are still in place and sampling goes on; where the canary refuses, nobody
        knows what is in place and sampling stays stopped until a publish is accepted.
        """
        async with self._publishing:
            await self.engine.pause()
            try:
                await self.engine.load(weights)
            except BaseException:
                await self.engine.resume()
                raise
            mismatch = check(canary, await self.engine.score(canary.rows), weights.version)
            await self.engine.resume()
        if admit:
            self.admit(weights.version)
        return mismatch

    async def batch(self, step: int, wait_s: float) -> list[Group] | None:
        """The groups of trainer step `step`, or None if they are not complete within `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        async with self._changed:
            while True:
                if self.fatal is not None:
                    raise FailureError(self.fatal)
                taken = self.journal.take(step, self.plan.groups)
                if taken is not None:
                    return taken
                if self.version < 0:
                    message = "the engine has no weights yet: publish first"
                    raise FailureError(Failure.of(FailureKind.LOST, Stage.GENERATE, message))
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return None

    async def run_tasks(
        self,
        split: str,
        indices: Sequence[int],
        *,
        samples: int,
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Group]:
        """Run tasks outside the journal (evaluation): `samples` episodes of each, in the order of `indices`."""
        specs = [
            self._spec(f"{split}-{index}", split, index, member, derive_seed(seed, split, index, member), sampling)
            for index in indices
            for member in range(samples)
        ]
        done = 0

        async def one(spec: EpisodeSpec) -> Trajectory:
            nonlocal done
            trajectory = await self._episode(spec)
            done += 1
            progress(done)
            return trajectory

        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(one(spec)) for spec in specs]
        rows = [job.result() for job in jobs]
        return [
            Group(f"{split}-{index}", index, tuple(rows[i * samples : (i + 1) * samples]))
            for i, index in enumerate(indices)
        ]

    async def close(self) -> None:
        """Cancel what runs; it stays pending in the journal."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.journal.close()

    def _start(self, place: int, index: int, member: int) -> None:
        plan = self.plan
        seed = derive_seed(plan.seed, "episode", place, member)
        spec = self._spec(f"{place:08d}", plan.split, index, member, seed, plan.sampling)
        self._spawn(self._journaled(place, spec))

    def _spec(self, group: str, split: str, index: int, member: int, seed: int, sampling: Sampling) -> EpisodeSpec:
        plan = self.plan
        task = Task(f"{split}/{index}", origin=TaskOrigin(split, index))
        return EpisodeSpec(
            f"{group}/{member:03d}",
            group,
            task,
            index,
            member,
            seed,
            sampling,
            plan.max_turns,
            plan.max_length,
            plan.attempts,
        )

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _journaled(self, place: int, spec: EpisodeSpec) -> None:
        trajectory = await self._episode(spec)
        try:
            self.journal.record(place, trajectory)
        except FailureError as error:
            self.fatal = error.failure
        async with self._changed:
            self._changed.notify_all()

    async def _episode(self, spec: EpisodeSpec) -> Trajectory:
        async with self._slots:
            self.running.value += 1
            try:
                trajectory = await run_episode(spec, make_env=self.make_env, engine=self.engine, renderer=self.renderer)
            finally:
                self.running.value -= 1
                self.engine.kick()
        if trajectory.failure is not None:
            self.failures[f"{trajectory.failure.kind}/{trajectory.failure.stage}"] += 1
        self.forks.update(turn.fork for turn in trajectory.turns if turn.fork)
        return trajectory
