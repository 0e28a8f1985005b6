"""The scheduler when things go wrong or slowly: hangs, stragglers, failures, a slow trainer, a full disk."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintain.envs import Environment, Observation, Step, Task, TaskSource, user
from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Sampling
from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.groups import Patience
from quintain.rollout.scheduler import Scheduler
from quintain.trajectory import Group, Trajectory, versions_of

from ..fake_engine import FakeEngine, hang_on
from .stage import CHAT, IDENTITY, batch_of, canary, plan, weights
from .test_journal import pending
from .world import on_virtual_clock

Script = Callable[[Task, int], float]
"""(task, episode seed) -> seconds that the episode takes; raises to fail, infinity hangs."""


class Scripted(Environment):
    """One turn that takes as long as `script` says; the reward is a function of the seed."""

    def __init__(self, script: Script) -> None:
        self.script = script

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        raise NotImplementedError

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.seconds, self.seed = self.script(task, seed), seed
        return Observation((user("go"),))

    async def step(self, action: Any) -> Step:
        if self.seconds == float("inf"):
            await asyncio.Event().wait()
        await asyncio.sleep(self.seconds)
        return Step(Observation(), self.seed % 97 / 97, True)


def made_of(folder: Path, script: Script, *, engine: FakeEngine | None = None, **changes: Any) -> Scheduler:
    made = plan(**{"groups": 2, "members": 3, "attempts": 1, **changes})
    journal = Journal(folder / "journal.db", members=made.members, identity=IDENTITY, oversample=made.oversample)
    engine = engine or FakeEngine(words=128)
    return Scheduler(made, engine=engine, chat=CHAT, make_env=lambda _: Scripted(script), journal=journal)


async def publish(made: Scheduler, folder: Path, version: int, *, admit: bool = True) -> None:
    published = weights(folder, version)
    await made.publish(published, canary(published), admit=admit)


async def batch(made: Scheduler, step: int) -> list[Group]:
    groups = await batch_of(made, step, 1e6)
    assert groups is not None, "waited in vain"
    return groups


def place_of(task: Task) -> int:
    """Tasks of an endless split are taken in order."""
    return int(task.id.split("/")[1])


def hanging(place: int) -> Script:
    """One member of the group at `place` hangs: the first that gets there."""
    hung: list[int] = []

    def script(task: Task, seed: int) -> float:
        if place_of(task) == place and not hung:
            hung.append(seed)
        return float("inf") if seed in hung else 1.0

    return script


def test_an_environment_that_hangs_keeps_no_other_episode_from_running(tmp_path: Path) -> None:
    async def main() -> None:
        made = made_of(tmp_path, hanging(0), groups=4, max_concurrency=2)
        await publish(made, tmp_path, 0)
        assert await made.batch(0, 100.0) is None
        assert pending(made.journal) == [(0, 0)]
        assert (made.running(), made.waiting) == (1, 0)
        await made.close()

    on_virtual_clock(main())


def test_by_default_a_slow_episode_is_waited_for_and_keeps_its_reward(tmp_path: Path) -> None:
    async def main() -> None:
        made = made_of(tmp_path, lambda task, seed: 5000.0 if place_of(task) == 0 else 1.0)
        await publish(made, tmp_path, 0)
        groups = await batch(made, 0)
        assert all(t.reward is not None for g in groups for t in g.trajectories)
        assert made.counters.stragglers == 0
        await made.close()

    on_virtual_clock(main())


def test_where_it_is_asked_for_a_straggler_ends_as_a_failure_that_keeps_its_turns_and_gets_no_extra(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        patience = Patience(factor=3.0, floor_s=20.0)
        made = made_of(tmp_path, hanging(0), patience=patience, oversample=2, attempts=3)
        await publish(made, tmp_path, 0)
        began = asyncio.get_running_loop().time()
        first, second = await batch(made, 0)
        assert 20.0 < asyncio.get_running_loop().time() - began < 22.0
        (slow,) = [t for t in first.trajectories if t.failure is not None]
        assert slow.failure is not None
        assert (slow.failure.kind, slow.failure.stage, slow.attempts) == (FailureKind.TIMEOUT, Stage.STEP, 1)
        assert "rollout.straggler: fail" in slow.failure.message
        assert slow.reward is None
        assert len(first.trajectories) == len(second.trajectories) == 3
        assert all(t.reward is not None for t in second.trajectories)
        assert (made.counters.stragglers, made.counters.replaced) == (1, 0)
        await made.close()
        report = audit(tmp_path / "journal.db")
        assert report.ok, report.problems

    on_virtual_clock(main())


def test_an_engine_that_hangs_on_a_turn_is_asked_again_and_the_sample_is_the_same(tmp_path: Path) -> None:
    async def outputs(folder: Path, **options: Any) -> list[Any]:
        engine = FakeEngine(words=128, **options)
        made = made_of(folder, lambda task, seed: 1.0, engine=engine, attempts=2, sample_timeout_s=60.0)
        await publish(made, folder, 0)
        rows = [t for g in await batch(made, 0) for t in g.trajectories]
        assert made.failures == {}
        await made.close()
        return [(t.id, t.turns[0].output_ids.tolist()) for t in rows] + [max(t.attempts for t in rows)]

    for name in ("calm", "hung"):
        (tmp_path / name).mkdir()
    *calm, once = on_virtual_clock(outputs(tmp_path / "calm"))
    *hung, twice = on_virtual_clock(outputs(tmp_path / "hung", fail=hang_on(2, asyncio.Event())))
    assert hung == calm
    assert (once, twice) == (1, 2)


def test_an_engine_that_stays_hung_is_a_failure_that_names_the_option(tmp_path: Path) -> None:
    async def stuck(call: int, token: int) -> None:
        if call == 1:
            await asyncio.Event().wait()

    async def main() -> None:
        engine = FakeEngine(words=128, fail=stuck)
        made = made_of(tmp_path, lambda task, seed: 1.0, engine=engine, sample_timeout_s=60.0)
        await publish(made, tmp_path, 0)
        (failed,) = [t.failure for g in await batch(made, 0) for t in g.trajectories if t.failure is not None]
        assert (failed.kind, failed.stage) == (FailureKind.TIMEOUT, Stage.GENERATE)
        assert failed.message == "the engine did not finish a turn within 60 s (rollout.sample_timeout_s)"
        await made.close()

    on_virtual_clock(main())


def failing(count: int) -> Script:
    """The first `count` episodes fail."""
    seen: list[int] = []

    def script(task: Task, seed: int) -> float:
        seen.append(seed)
        if len(seen) <= count:
            raise RuntimeError("no luck")
        return 1.0

    return script


@pytest.mark.parametrize(("oversample", "failed", "extras"), [(0, 3, 0), (1, 2, 1), (3, 0, 3), (5, 0, 3)])
def test_extra_members_stand_in_for_those_that_failed(
    tmp_path: Path, oversample: int, failed: int, extras: int
) -> None:
    """All three first members of a group fail."""

    async def main() -> None:
        made = made_of(tmp_path, failing(3), oversample=oversample)
        await publish(made, tmp_path, 0)
        groups = await batch(made, 0)
        assert [len(g.trajectories) for g in groups] == [3, 3]
        assert sum(t.failure is not None for g in groups for t in g.trajectories) == failed
        counters = made.counters
        assert counters.replaced == extras
        assert made.journal.balance().trajectories == 6 + extras
        assert sum(counters.dropped.values()) == 0
        await made.close()
        report = audit(tmp_path / "journal.db")
        assert report.ok, report.problems
        assert report.replaced == counters.replaced

    on_virtual_clock(main())


def test_groups_that_teach_nothing_are_replaced_until_the_bound_is_reached(tmp_path: Path) -> None:
    class Dull(Scripted):
        async def step(self, action: Any) -> Step:
            return Step(Observation(), 1.0, True)

    async def main() -> None:
        made = made_of(tmp_path, lambda task, seed: 0.0, refills=5)
        made._runner.make_env = lambda _: Dull(lambda task, seed: 0.0)
        await publish(made, tmp_path, 0)
        assert [g.index for g in await batch(made, 0)] == [5, 6]
        assert made.counters.dropped == {"zero_variance": 5}
        assert made.counters.wasted_tokens > 0
        balance = made.journal.balance()
        assert (balance.issued, balance.consumed) == (7, 2)
        await publish(made, tmp_path, 1)
        assert [g.index for g in await batch(made, 1)] == [12, 13]
        await made.close()
        report = audit(tmp_path / "journal.db")
        assert report.ok, report.problems
        assert report.dropped == {"zero_variance": 10}

    on_virtual_clock(main())


def test_where_everything_fails_the_trainer_is_told_so_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        made = made_of(tmp_path, failing(10**6), refills=3, oversample=1)
        await publish(made, tmp_path, 0)
        groups = await batch(made, 0)
        assert all(t.failure is not None for g in groups for t in g.trajectories)
        assert made.counters.dropped == {"too_few": 3}
        await made.close()

    on_virtual_clock(main())


def test_a_trainer_that_never_takes_stops_the_sampling_and_nothing_piles_up_in_memory(tmp_path: Path) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Trajectory for thing in gc.get_objects())

    before = alive()

    async def main() -> None:
        made = made_of(tmp_path, lambda task, seed: 1.0, groups=20, max_staleness=4)
        await publish(made, tmp_path, 0)
        await asyncio.sleep(1e6)
        assert made.journal.balance().issued == (4 + 0 + 1) * 20
        assert (made.running(), made.waiting) == (0, 0)
        assert made.journal.balance().completed == 100
        assert alive() <= before, "trajectories wait on disk"
        await batch(made, 0)
        await publish(made, tmp_path, 1)
        await asyncio.sleep(1e6)
        assert made.journal.balance().issued == (4 + 1 + 1) * 20
        await made.close()

    on_virtual_clock(main())


def test_a_journal_that_cannot_be_written_ends_the_wait_with_its_failure_and_a_resume_uses_everything_once(
    tmp_path: Path,
) -> None:
    async def full() -> None:
        long = FakeEngine(lambda prompt, sampling: [65] * 400, words=128)
        made = made_of(tmp_path, lambda task, seed: 1.0, engine=long, sampling=Sampling(400))
        await publish(made, tmp_path, 0)
        (pages,) = made.journal._db.execute("PRAGMA page_count").fetchone()
        made.journal._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FailureError, match="free space on its disk, then resume") as caught:
            await batch(made, 0)
        assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.RESOURCE, Stage.JOURNAL)
        await made.close()

    async def resumed() -> None:
        made = made_of(tmp_path, lambda task, seed: 1.0)
        await publish(made, tmp_path, 0)
        assert [g.index for g in await batch(made, 0)] == [0, 1]
        await made.close()
        assert audit(tmp_path / "journal.db").ok

    on_virtual_clock(full())
    on_virtual_clock(resumed())


def test_a_trainer_that_goes_back_to_an_older_version_gets_what_it_had_and_nothing_stale(tmp_path: Path) -> None:
    async def main() -> None:
        made = made_of(tmp_path, lambda task, seed: 1.0, max_staleness=1)
        had = {}
        for step in range(3):
            await publish(made, tmp_path, step)
            had[step] = [t.id for g in await batch(made, step) for t in g.trajectories]
        await publish(made, tmp_path, 3)  # what runs now is for steps 3 and 4
        for step in range(1, 5):  # and now the trainer starts again from its checkpoint of step 1
            await publish(made, tmp_path, step)
            groups = await batch(made, step)
            rows = [t for g in groups for t in g.trajectories]
            assert [t.id for t in rows] == had.get(step, [t.id for t in rows])
            ages = {step - version for t in rows for version in versions_of(t)}
            assert ages <= {0, 1}
        await made.close()
        report = audit(tmp_path / "journal.db")
        assert report.ok, report.problems
        assert report.consumed == 10

    on_virtual_clock(main())


def test_while_the_server_drains_nothing_new_is_issued(tmp_path: Path) -> None:
    async def main() -> None:
        made = made_of(tmp_path, lambda task, seed: 1.0, max_staleness=3)
        await publish(made, tmp_path, 0)
        made.draining = True
        await publish(made, tmp_path, 1)
        await asyncio.sleep(100.0)
        assert made.journal.balance().issued == 8
        assert made.running() == 0
        await made.close()

    on_virtual_clock(main())
