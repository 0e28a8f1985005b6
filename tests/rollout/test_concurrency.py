"""Concurrency: the engine is neither starved nor thrashing, on an engine whose KV cache is simulated.

And the gate, which hands out the places: oldest first, never too many, none lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from quintain.envs import LocalClient, Observation, Task
from quintain.rollout.engines.base import Completion, EngineStats, Sampling
from quintain.rollout.episodes.gate import EpisodeCount, Gate
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.concurrency import FULL, ROOM, Concurrency
from quintain.rollout.scheduler import Scheduler, task_of

from ..fake_engine import FakeEngine
from .stage import CHAT, IDENTITY, Words, batch_of, canary, plan, played, scheduler, weights
from .world import on_virtual_clock

IDLE = EngineStats(0, 0, 0, 0, 0, 0.0)


def report(usage: float | None, *, waiting: int = 0, preemptions: int = 0) -> EngineStats:
    return replace(IDLE, kv_usage=usage, waiting=waiting, preemptions=preemptions)


REPORTS = st.builds(
    report,
    st.one_of(st.none(), st.floats(0, 1)),
    waiting=st.integers(0, 5),
    preemptions=st.integers(0, 9),
)


@given(st.integers(1, 50), st.integers(1, 500), st.lists(st.tuples(REPORTS, st.integers(0, 500)), max_size=40))
def test_the_limit_stays_within_its_bounds_and_moves_only_for_a_reason(
    least: int, most: int, looks: list[tuple[EngineStats, int]]
) -> None:
    now = Concurrency.begin(most, least=least, engine=report(0.0))
    for engine, active in looks:
        before, now = now, now.observe(engine, active)
        assert 1 <= min(least, most) <= now.limit <= most
        if engine.kv_usage is None:
            assert now == before
        elif now.limit > before.limit:
            assert engine.kv_usage < ROOM
            assert engine.waiting == 0
            assert active >= before.limit
        elif now.limit < before.limit:
            trouble = before.preemptions is not None and engine.preemptions > before.preemptions
            assert engine.kv_usage >= FULL or trouble
            again = now.observe(replace(engine, preemptions=engine.preemptions + 1), active)
            assert again.limit == now.limit, "what a cut has not achieved yet is no reason for another"


@given(st.integers(1, 100), st.floats(0, ROOM, exclude_max=True), st.integers(1, 300))
def test_an_engine_with_room_and_no_queue_always_gets_more_until_it_has_all(
    limit: int, usage: float, most: int
) -> None:
    now = Concurrency(1, most, min(limit, most))
    grown = now.observe(report(usage), now.limit)
    assert now.limit == most or now.limit < grown.limit <= 2 * now.limit


def test_an_engine_that_does_not_report_its_cache_keeps_the_limit_it_was_given() -> None:
    now = Concurrency.begin(64, least=8, engine=IDLE)
    for active in (0, 64, 500):
        now = now.observe(replace(IDLE, waiting=100, preemptions=active), active)
    assert now.limit == 64


def test_preemptions_count_from_the_first_look_and_a_restarted_engine_counts_from_zero() -> None:
    now = Concurrency(1, 100, 100).observe(report(0.9, preemptions=7), 100)
    assert now.limit == 100
    cut = now.observe(report(0.9, preemptions=8, waiting=40), 100)
    assert cut.limit == 45
    assert cut.observe(report(0.9, preemptions=0), 45).limit == 45


class Cache:
    """An engine whose episodes hold ever more of a KV cache; where it is full, the newest are put back."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.blocks, self.random = blocks, random.Random(seed)
        self.episodes: list[list[int]] = []  # [blocks held, blocks at the end], oldest first
        self.used = self.waiting = self.preemptions = 0

    def tick(self, limit: int) -> None:
        """Fill up to `limit` episodes, grow each by a block, put back what does not fit."""
        self.waiting = max(self.waiting, limit - len(self.episodes))
        while self.waiting and self.used < self.blocks:
            self.waiting -= 1
            self.used += 1
            self.episodes.append([1, min(400, int(10 * self.random.paretovariate(1.3)))])
        for episode in self.episodes:
            episode[0] += 1
        self.episodes = [episode for episode in self.episodes if episode[0] < episode[1]]
        self.used = sum(held for held, _ in self.episodes)
        while self.used > self.blocks:
            self.used -= self.episodes.pop()[0]
            self.waiting += 1
            self.preemptions += 1

    def stats(self) -> EngineStats:
        return report(min(1.0, self.used / self.blocks), waiting=self.waiting, preemptions=self.preemptions)


def drive(cache: Cache, now: Concurrency, ticks: int, *, move: bool = True) -> tuple[float, Concurrency]:
    """The mean use of the cache over `ticks`, and the state at their end."""
    usage = 0.0
    for tick in range(ticks):
        cache.tick(now.limit)
        usage += cache.used / cache.blocks
        if move and tick % 5 == 0:
            now = now.observe(cache.stats(), len(cache.episodes) + cache.waiting)
    return usage / ticks, now


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.integers(1000, 3000), st.integers(0, 999))
def test_the_cache_is_kept_busy_with_a_fraction_of_the_preemptions_of_no_control(blocks: int, seed: int) -> None:
    free, driven = Cache(blocks, seed), Cache(blocks, seed)
    drive(free, Concurrency(1, 500, 500), 300, move=False)
    _, settled = drive(driven, Concurrency.begin(500, least=4, engine=report(0.0)), 100)
    before = driven.preemptions
    usage, _ = drive(driven, settled, 300)
    assert usage > 0.55, "starved"
    assert driven.preemptions - before < 0.25 * free.preemptions, "thrashing"


KEYS = st.tuples(st.integers(0, 5), st.integers(0, 3))


@given(st.lists(st.one_of(KEYS, st.integers(0, 30), st.integers(1, 6).map(lambda n: ("limit", n))), max_size=50))
def test_places_go_to_the_oldest_and_never_too_many(acts: list[Any]) -> None:
    limit, count = 2, EpisodeCount()
    gate = Gate(limit, count)
    tickets: list[tuple[tuple[int, int], int, Any]] = []
    for act in acts:
        held = {id(ticket) for _, _, ticket in tickets if ticket.granted}
        if isinstance(act, int):
            if tickets:
                tickets.pop(act % len(tickets))[2].release()
        elif act[0] == "limit":
            gate.limit = limit = act[1]
        else:
            tickets.append((act, len(tickets), gate.ask(act)))
        granted = [ticket for _, _, ticket in tickets if ticket.granted]
        waiting = sorted((key, at) for at, (key, _, ticket) in enumerate(tickets) if not ticket.granted)
        fresh = [(key, at) for at, (key, _, t) in enumerate(tickets) if t.granted and id(t) not in held]
        assert count() == gate.held == len(granted)
        assert gate.waiting == len(waiting)
        assert not (waiting and len(granted) < limit), "a place is free and somebody waits"
        assert not fresh or len(granted) <= limit
        assert not (waiting and fresh) or max(fresh) < min(waiting)


@given(st.lists(st.tuples(KEYS, st.sampled_from("abc")), max_size=20), st.randoms())
def test_no_environment_has_more_episodes_than_places_and_who_has_them_does_not_depend_on_who_left_first(
    asked: list[tuple[tuple[int, int], str]], chance: random.Random
) -> None:
    own = {"a": 1, "b": 2, "c": None}

    def play(shuffled: bool) -> list[list[int]]:
        """Who holds places, round by round, where all that hold one give it back in some order."""
        gate, rounds = Gate(4, own=own), []
        tickets = [gate.ask(key, environment) for key, environment in asked]
        while held := [at for at, ticket in enumerate(tickets) if ticket.granted and not ticket.released]:
            rounds.append(held)
            of = Counter(asked[at][1] for at in held)
            assert of["a"] <= 1
            assert of["b"] <= 2
            assert len(held) <= 4
            waiting = Counter(asked[at][1] for at, ticket in enumerate(tickets) if not ticket.granted)
            assert len(held) == 4 or not waiting["c"], "a place is free and somebody waits"
            leaving = [at for at in held if at % 3 or len(rounds) % 2]
            if shuffled:
                chance.shuffle(leaving)
            for at in leaving or held:
                tickets[at].release()
        return rounds

    assert play(False) == play(True)


async def test_a_ticket_that_is_released_while_it_waits_leaves_the_queue() -> None:
    gate = Gate(1)
    first, second, third = gate.ask((0, 0)), gate.ask((0, 1)), gate.ask((0, 2))
    second.release()
    first.release()
    first.release()
    await third.wait()
    assert (gate.held, gate.waiting) == (1, 0)


def test_the_scheduler_follows_the_engine_and_counts_its_limit(tmp_path: Path) -> None:
    class Full(FakeEngine):
        usage = 0.0

        def stats(self) -> EngineStats:
            return replace(super().stats(), kv_usage=self.usage)

    async def main() -> None:
        engine = Full(words=128, token_s=9.0)
        made = scheduler(tmp_path, engine=engine, groups=8, max_concurrency=20, follow_engine=True)
        published = weights(tmp_path, 0)
        await made.publish(published, canary(published), admit=True)
        assert made.concurrency_limit == 3
        assert (made.running(), made.waiting) == (3, 21)
        await asyncio.sleep(2.5)
        assert made.concurrency_limit == 12
        assert made.running() == 12
        engine.usage = 1.0
        await asyncio.sleep(1)
        assert made.concurrency_limit == 9
        engine.usage = 0.1
        assert await made.batch(0, 1e6) is not None
        await asyncio.sleep(1)
        assert made.running() == made.waiting == 0
        await made.close()

    on_virtual_clock(main())


def test_an_evaluation_alone_makes_the_limit_follow_the_engine_too(tmp_path: Path) -> None:
    class Roomy(FakeEngine):
        def stats(self) -> EngineStats:
            return replace(super().stats(), kv_usage=0.1)

    async def main() -> None:
        made = scheduler(tmp_path, engine=Roomy(words=128, token_s=1.0), max_concurrency=64, follow_engine=True)
        published = weights(tmp_path, 0)
        await made.publish(published, canary(published), admit=False)
        assert made.concurrency_limit == 3
        groups = await asyncio.gather(
            *(made.run_task(f"g{i}", task_of("heldout", i), i, (1,), sampling=Sampling(8)) for i in range(60))
        )
        assert len(groups) == 60
        assert made.concurrency_limit >= 24
        await made.close()

    on_virtual_clock(main())


@pytest.mark.parametrize("follow", [True, False])
def test_a_limit_on_episodes_changes_nothing_that_is_sampled(tmp_path: Path, follow: bool) -> None:
    async def outputs(folder: Path, limit: int) -> list[Any]:
        made = scheduler(folder, max_concurrency=limit, follow_engine=follow)
        published = weights(folder, 0)
        await made.publish(published, canary(published), admit=True)
        groups = await batch_of(made, 0, 1e6)
        assert groups is not None
        await made.close()
        return [turn.output_ids.tolist() for g in groups for t in g.trajectories for turn in t.turns]

    for name in ("few", "many"):
        (tmp_path / name).mkdir()

    async def main() -> None:
        assert await outputs(tmp_path / "few", 1) == await outputs(tmp_path / "many", 64)

    on_virtual_clock(main())


def test_episodes_that_wait_for_each_other_at_the_engine_wait_for_no_place_that_one_of_them_holds(
    tmp_path: Path,
) -> None:
    class Few(Words):
        """Two may be played at a time."""

        free = asyncio.Semaphore(2)

        async def reset(self, task: Task, *, seed: int) -> Observation:
            await self.free.acquire()
            return await super().reset(task, seed=seed)

        async def close(self) -> None:
            self.free.release()

    class Lockstep(FakeEngine):
        """Samples once as many have asked as run."""

        asked = 0

        async def generate(self, *request: Any, **more: Any) -> Completion:
            self.asked += 1
            while self.asked < made.running():  # noqa: ASYNC110 - on a virtual clock
                await asyncio.sleep(0.1)
            completion = await super().generate(*request, **more)
            self.asked -= 1
            return completion

    async def main() -> None:
        published = weights(tmp_path, 0)
        await made.publish(published, canary(published), admit=True)
        groups = await batch_of(made, 0, 60.0)
        assert groups is not None, "they stand still"
        assert len(groups) == 2
        await made.close()

    made = Scheduler(
        plan(plays=(played(places=2),)),
        engine=Lockstep(words=128),
        chat=CHAT,
        make_env=lambda _: LocalClient(Few).episode(),
        journal=Journal(tmp_path / "journal.db", members=3, identity=IDENTITY),
    )
    on_virtual_clock(main())
