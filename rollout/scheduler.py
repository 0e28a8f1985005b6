"""The rollout room's main loop: admit, run, journal, judge, hand over.

Invariants:
- every place of the task order is issued exactly once, and recorded in the journal before it counts;
- what was issued and not recorded when the process died is issued again, with the same seeds, once the staleness
  rule admits it at the version the trainer goes on from;
- nothing is sampled before the first publish, nor between a refused publish and the next accepted one;
- trajectories wait for the trainer on disk, and admission bounds how many do: a slow trainer stops the sampling.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from quintain.envs.base import Environment
from quintain.failure import Failure, FailureError, FailureKind, Stage, failure_from
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Engine, Sampling, Weights
from quintain.rollout.episodes.episode import EpisodeSpec
from quintain.rollout.episodes.gate import EpisodeCount as EpisodeCount
from quintain.rollout.episodes.gate import Key
from quintain.rollout.episodes.runner import Finished, Runner
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.admission import Admission
from quintain.rollout.rules.groups import Groups, outcome_of, rewards_of
from quintain.rollout.rules.order import TaskOrder, derive_seed
from quintain.rollout.rules.plan import Plan as Plan
from quintain.rollout.rules.plan import Played
from quintain.rollout.weights.canary import Canary, Mismatch, check
from quintain.task import Task, TaskOrigin
from quintain.trajectory import Group


@dataclass(slots=True)
class Counters:
    """What the rooms around may want to know. Counts are since the start of this process.

    `wasted_tokens` were sampled and no loss will see them: those of failed trajectories and of dropped groups.
    `staleness` counts the trajectories handed to the trainer by age: the step that consumes them minus the version
    of their oldest token. `mixed` of them hold tokens of more than one version.
    """

    wasted_tokens: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    mixed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # groups, by reason
    replaced: int = 0  # failed members that an extra stands in for
    stragglers: int = 0  # episodes that were ended as too slow


class Scheduler:
    """Owns the admission state, the groups, the journal and the running episodes of one run."""

    def __init__(
        self,
        plan: Plan,
        *,
        engine: Engine,
        chat: Chat,
        make_env: Callable[[str], Environment],
        journal: Journal,
        running: EpisodeCount | None = None,
    ) -> None:
        self.plan, self.engine, self.chat, self.make_env, self.journal = plan, engine, chat, make_env, journal
        self.running = running or EpisodeCount()
        self.fatal: Failure | None = None
        self.stall_s = 0.0  # how long sampling stood still for the last publish
        self.draining = False  # true: issue nothing more; what runs goes on to its end
        self._runner = Runner(
            plan, engine=engine, chat=chat, make_env=make_env, running=self.running, limit_of=self._limit_s
        )
        self.failures, self.forks = self._runner.failures, self._runner.forks
        self.counters = Counters()
        self._changed = asyncio.Event()
        self._order, self._learned = self._ordered(), 0
        journal.describe(plan.audited())
        balance = journal.balance()
        self._issued, self._consumed = balance.issued, balance.consumed
        self._groups = Groups(plan.rules, journal.window())
        self._admission = self._only_consumed()
        self._next = self._first()  # the place to admit next
        self._judge()

    @property
    def version(self) -> int:
        """The version that admission follows; -1 before the first publish."""
        return self._admission.version

    @property
    def concurrency_limit(self) -> int:
        """Episodes that may run now."""
        return self._runner.gate.limit

    @property
    def waiting(self) -> int:
        """Episodes that wait for a place."""
        return self._runner.gate.waiting

    def admit(self, version: int) -> None:
        """Open admission for `version`: start what the staleness rule allows, what a crash left behind first.

        A version before the one in force is a trainer that started again from a checkpoint: what runs is recalled,
        and goes again when its turn comes.
        """
        if version < self.version:
            self._runner.recall()
            self._admission, self._next = self._only_consumed(), self._first()
            self._order, self._learned = self._ordered(), 0
        self._admission = self._admission.advance(version)
        self._learn(version)
        try:
            self._fill()
        except FailureError as error:
            self.fatal = error.failure
            raise

    async def publish(self, weights: Weights, canary: Canary, *, admit: bool) -> Mismatch:
        """Prepare, pause, load, prove with the canary, resume; what was being sampled goes on under the new weights.

        Where the load fails the old weights are still in place and sampling goes on; where the canary refuses, nobody
        knows what is in place and sampling stays stopped until a publish is accepted. One at a time: the server's
        control has the lock, which keeps pauses of an operator apart from it too.
        """
        await self.engine.prepare(weights)
        clock = asyncio.get_running_loop().time
        began = clock()
        await self.engine.pause()
        try:
            await self.engine.load(weights)
        except BaseException:
            await self.engine.resume()
            raise
        mismatch = check(canary, await self.engine.score(canary.rows), weights.version)
        await self.engine.resume()
        self.stall_s = clock() - began
        if admit:
            self.admit(weights.version)
        return mismatch

    async def batch(self, step: int, wait_s: float) -> list[int] | None:
        """The places of trainer step `step`, or None if they are not complete within `wait_s` seconds.

        Their groups are the journal's (`Journal.group`).
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_s
        look = True  # at the journal: the step may have been taken before
        while True:
            if self.fatal is not None:
                raise FailureError(self.fatal)
            changed = self._changed
            if look or self._groups.ready():
                look = False
                if (taken := self._take(step)) is not None:
                    return taken
            if self.version < 0:
                raise FailureError.of(FailureKind.LOST, Stage.GENERATE, "the engine has no weights yet: publish first")
            try:
                async with asyncio.timeout(deadline - clock()):
                    await changed.wait()
            except TimeoutError:
                return None

    async def run_task(
        self,
        name: str,
        task: Task,
        index: int,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        environment: str | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Group:
        """Run `task` outside the journal, ahead of training episodes that wait: the group `name`, an episode a seed.

        It is of `environment`, by default the first, whose rewards count as it gives them.
        """
        played = self.plan.played(environment)
        assert played is not None  # checked where it was asked for
        played = replace(played, sampling=sampling, reward_weights=None)
        specs = [self._spec(name, played, task, index, member, seed) for member, seed in enumerate(seeds)]
        return Group(name, index, tuple(await self._runner.run(specs, progress)))

    async def close(self) -> None:
        """Cancel what runs; it stays pending in the journal."""
        await self._runner.close()
        self.journal.close()

    def _only_consumed(self) -> Admission:
        """Admission that counts what is consumed: what waits or was under way is still to be admitted."""
        plan = self.plan
        return Admission(plan.groups * plan.members, plan.max_staleness, issued=self._consumed * plan.members)

    def _first(self) -> int:
        """The first place that is not consumed."""
        return min(self._groups.places(), default=self._issued)

    def _ordered(self) -> TaskOrder:
        """The order of tasks as the journal leaves it, with nothing measured."""
        order = TaskOrder(self.plan.splits, self.plan.seed)
        for place, index, _ in self.journal.used() if order.follows_what_is_measured else ():
            order.issued(place, index)
        return order

    def _learn(self, version: int) -> None:
        """Let a curriculum know what the steps before `version` have come to: the same, whenever it is asked."""
        if self._order.follows_what_is_measured:
            for group in self.journal.done(self._learned, before=version):
                self._order.measured(group.place, group.task_index, rewards_of(group.outcomes))
                self._learned = group.place + 1

    def _fill(self) -> None:
        """Admit places in order while there is room: those the journal knows first, then new ones."""
        while self._admission.room >= self.plan.members and not self.draining:
            place = self._next
            if place == self._issued:
                _, index = self._order.at(place)
                self.journal.issue(place, index, self.version)
                self._order.issued(place, index)
                self._groups.issue(place, index)
                self._issued += 1
            self._next += 1
            if not self._groups.is_dropped(place):
                self._admission = self._admission.issue(self.plan.members)
                self._start(place)

    def _start(self, place: int) -> None:
        """Launch every member that the group needs and that neither ended nor runs."""
        plan, index = self.plan, self._groups.task_index(place)
        played = plan.plays[self._order.source(place)]
        task = task_of(played.split.name, index)
        for member in self._groups.missing(place):
            if (place, member) not in self._runner:
                seed = derive_seed(plan.seed, "episode", place, member)
                spec = self._spec(f"{place:08d}", played, task, index, member, seed)
                self._runner.launch((place, member), spec, partial(self._keep, (place, member)))

    def _keep(self, key: Key, finished: Finished) -> None:
        """Record a finished training episode, and do what follows from it."""
        place, member = key
        trajectory = finished.trajectory
        outcome = outcome_of(trajectory, self.plan.rewards, straggler=finished.straggler, elapsed_s=finished.elapsed_s)
        try:
            if self.journal.record(place, trajectory, outcome, finished.packed):
                extras = self._groups.replaced(place)
                self._groups.record(place, member, outcome)
                self.counters.replaced += self._groups.replaced(place) - extras
                self.counters.stragglers += finished.straggler
                self.counters.wasted_tokens += outcome.tokens if trajectory.failure is not None else 0
                self._start(place)
                if not self._groups.missing(place):  # it is complete
                    self._judge()
                    self._fill()
        except Exception as error:  # the boundary: nobody awaits this; a journal that cannot be written ends the run
            self.fatal = failure_from(error, Stage.JOURNAL)
        self._notify()

    def _judge(self) -> None:
        """Drop the groups that dynamic sampling drops; others may be issued for them."""
        for place, reason in self._groups.drops():
            self.journal.drop(place, reason)
            self.counters.wasted_tokens += self._groups.drop(place, reason)
            self.counters.dropped[reason.value] += 1
            if place < self._next:
                self._admission = self._admission.drop(self.plan.members)

    def _take(self, step: int) -> list[int] | None:
        """The places of `step` if they are there; counted where it had not been taken before."""
        again = self.journal.was_taken(step)
        taken = self.journal.take(step, self.plan.groups)
        if taken is None or again:
            return taken
        self._groups.take()
        self._consumed += len(taken)
        if self._next < self._first():  # taken as a crash had left them, before the rule had counted them
            self._admission = replace(self._admission, issued=self._consumed * self.plan.members, dropped=0)
            self._next = self._first()
        for versions in (versions for place in taken for versions in self.journal.versions(place)):
            if versions:
                self.counters.staleness[step - min(versions)] += 1
                self.counters.mixed += len(versions) > 1
        return taken

    def _limit_s(self, key: Key) -> float:
        place, patience = key[0], self.plan.patience
        if patience is None or place not in self._groups:
            return math.inf
        return patience.limit_s(self._groups.finished_s(place), self.plan.members)

    def _notify(self) -> None:
        """Wake who waits for a batch."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _spec(self, group: str, played: Played, task: Task, index: int, member: int, seed: int) -> EpisodeSpec:
        plan = self.plan
        return EpisodeSpec(
            f"{group}/{member:03d}",
            group,
            task,
            index,
            member,
            seed,
            played.sampling,
            played.max_turns,
            plan.max_length,
            plan.attempts,
            plan.sample_timeout_s,
            played.split.environment,
            played.reward_weights,
        )


def task_of(split: str, index: int) -> Task:
    """The task at `index` of `split`, which the environment knows."""
    return Task(f"{split}/{index}", origin=TaskOrigin(split, index))
