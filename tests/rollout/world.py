"""A small world on a virtual clock: the real scheduler, journal and fake engine, a trainer, and things going wrong.

Time jumps to the next timer, so an hour of heavy-tailed episodes takes milliseconds, and the same setup gives the
same events every time. What an episode comes to (its reward, whether it fails) depends on its task and seed alone;
how long it takes depends on `durations`. So two worlds that differ in durations, limits or crashes must consume the
same groups in the same order. A crash is a `BaseException` out of the journal, before or after a write: from then
on nothing is written, and the next life begins with what is in the file.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quintain.envs import Action, Environment, Observation, Step, Task, TaskSource, user
from quintain.failure import FailureError, FailureKind
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.order import derive_seed
from quintain.rollout.scheduler import Scheduler
from quintain.trajectory import Group, versions_of

from ..fake_engine import FakeEngine
from .stage import CHAT, IDENTITY, batch_of, canary, plan, weights

FOREVER_S = 1e7


class Deadlock(AssertionError):
    """Nobody is ready and nobody will ever be."""


class _Jumping(selectors.SelectSelector):
    """Never waits: where nothing is ready, the clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock("nobody will ever wake up")
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which time passes only while everybody sleeps."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def on_virtual_clock(main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` to its end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Crash(BaseException):
    """`kill -9`, as far as one process can play it."""


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say nothing of the tasks that a crash ended."""
    if not isinstance(context.get("exception"), Crash):
        loop.default_exception_handler(context)


@dataclass(frozen=True)
class Setup:
    """What a world is like. `crashes`: at which journal events it dies; with `lone` the trainer survives."""

    groups: int = 2
    members: int = 2
    max_staleness: int = 1
    steps: int = 4
    oversample: int = 0
    refills: int | None = None
    limit: int = 64
    seed: int = 0
    durations: int = 0
    failing: float = 0.0  # share of the episodes that fail
    dull: float = 0.0  # share of the tasks with equal rewards
    update_s: float = 5.0
    save_every: int = 1
    crashes: tuple[int, ...] = ()
    lone: bool = False


def share(*parts: int | str) -> float:
    """A number in 0..1 that is a function of `parts`."""
    return derive_seed(*parts) / 2**62


class Chance(Environment):
    """One or two turns; takes as long as `durations` says, and comes to what the seed says."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        raise NotImplementedError

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.task, self.seed = task.id, seed
        self.left = 1 + seed % 2
        await self._take_time()
        if share(self.setup.seed, "fail", seed) < self.setup.failing:
            raise RuntimeError("told to fail")
        return Observation((user("go"),))

    async def step(self, action: Action) -> Step:
        self.left -= 1
        await self._take_time()
        dull = share(self.setup.seed, "dull", self.task) < self.setup.dull
        reward = 0.5 if dull else share(self.setup.seed, "reward", self.seed)
        return Step(Observation((user("on"),)), reward * (self.left == 0), self.left == 0)

    async def _take_time(self) -> None:
        generator = np.random.default_rng([self.setup.durations, self.seed % 2**32, self.left])
        await asyncio.sleep(float(generator.pareto(1.1)))


@dataclass
class World:
    """Lives, one after the other, over one journal; what the trainer was given, and what it saw."""

    setup: Setup
    folder: Path
    consumed: dict[int, list[Any]] = field(default_factory=dict)  # step -> (place, task, rewards) of its groups
    ages: list[int] = field(default_factory=list)
    mixed: int = 0
    events: int = 0
    lives: int = 0
    step: int = 0
    checkpoint: int = 0
    most_running: int = 0
    counters: Any = None

    @property
    def path(self) -> Path:
        return self.folder / "journal.db"

    def run(self) -> World:
        """Live until the trainer is done."""
        done = False
        while not done:
            self.lives += 1
            assert self.lives < 100
            done = on_virtual_clock(self._live())
        return self

    async def _live(self) -> bool:
        setup = self.setup
        asyncio.get_running_loop().set_exception_handler(_quiet)
        self.down = asyncio.Event()
        if not setup.lone:
            self.step = self.checkpoint
        trainer: asyncio.Task[None] | None = None
        try:
            made = self.scheduler()
        except Crash:
            return False
        trainer = asyncio.create_task(self._train(made))
        dying = asyncio.create_task(self.down.wait())
        await asyncio.wait({trainer, dying}, return_when=asyncio.FIRST_COMPLETED)
        crashed = self.down.is_set()
        trainer.cancel()
        dying.cancel()
        await asyncio.gather(trainer, dying, return_exceptions=True)
        self.counters = made.counters
        await made.close()
        if not crashed:
            trainer.result()
        return not crashed

    def scheduler(self) -> Scheduler:
        setup = self.setup
        made = plan(
            groups=setup.groups, members=setup.members, max_staleness=setup.max_staleness, seed=setup.seed,
            oversample=setup.oversample, refills=setup.refills, max_concurrency=setup.limit, attempts=1,
        )  # fmt: skip
        journal = Mortal(self.path, members=setup.members, identity=IDENTITY, oversample=setup.oversample)
        journal.event = self.event
        return Scheduler(
            made,
            engine=FakeEngine(words=128, token_s=0.2),
            chat=CHAT,
            make_env=lambda _: Chance(setup),
            journal=journal,
        )

    def event(self, act: Callable[[], Any]) -> Any:
        """A journal event: die before it or after it, if it is time."""
        self._tick()
        result = act()
        self._tick()
        return result

    def _tick(self) -> None:
        if not self.down.is_set():
            self.events += 1
            if self.events in self.setup.crashes:
                self.down.set()
        if self.down.is_set():
            raise Crash

    async def _train(self, made: Scheduler) -> None:
        if self.lives == 1 or not self.setup.lone:  # a trainer that survives does not know of the crash
            await self._publish(made)
        while self.step < self.setup.steps:
            try:
                groups = await batch_of(made, self.step, FOREVER_S)
            except FailureError as error:
                if error.failure.kind is not FailureKind.LOST:
                    raise
                await self._publish(made)
                continue
            assert groups is not None, "the trainer waited in vain: a deadlock"
            self._given(groups)
            self.most_running = max(self.most_running, made.running())
            await asyncio.sleep(self.setup.update_s)
            self.step += 1
            if self.step % self.setup.save_every == 0:
                self.checkpoint = self.step
            await self._publish(made)

    async def _publish(self, made: Scheduler) -> None:
        published = weights(self.folder, self.step)
        await made.publish(published, canary(published), admit=self.step < self.setup.steps)

    def _given(self, groups: list[Group]) -> None:
        rows = [(int(g.id), g.index, tuple(t.reward for t in g.trajectories)) for g in groups]
        assert self.consumed.setdefault(self.step, rows) == rows, "a step asked for again was another one"
        assert all(len(group.trajectories) == self.setup.members for group in groups)
        for trajectory in (t for group in groups for t in group.trajectories):
            versions = versions_of(trajectory)
            self.mixed += len(versions) > 1
            self.ages += [self.step - version for version in versions]


class Mortal(Journal):
    """A journal whose every write may be the last."""

    event: Callable[[Callable[[], Any]], Any] = staticmethod(lambda act: act())

    def issue(self, *args: Any, **options: Any) -> None:
        self.event(lambda: super(Mortal, self).issue(*args, **options))

    def record(self, *args: Any, **options: Any) -> bool:
        return bool(self.event(lambda: super(Mortal, self).record(*args, **options)))

    def drop(self, *args: Any, **options: Any) -> None:
        self.event(lambda: super(Mortal, self).drop(*args, **options))

    def take(self, *args: Any, **options: Any) -> Any:
        return self.event(lambda: super(Mortal, self).take(*args, **options))
