"""The fleet's rules, with replicas that die and refuse on command: no server, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Weights
from quintain.rollout.engines.vllm import fleet
from quintain.rollout.engines.vllm.dialect import Load
from quintain.rollout.engines.vllm.fleet import Fleet, Member, ReplicaRequest, total_load
from quintain.rollout.engines.vllm.process import ServerLaunch
from quintain.rollout.engines.vllm.replica import ReplicaDown
from quintain.rollout.engines.vllm.weights import Holdings


class Server:
    """What a fleet sees of a replica: it may be dead, refuse weights, or fail while it loads them."""

    def __init__(self) -> None:
        self.url = "http://replica"
        self.dead = self.refuses = self.fails = self.paused = self.refuses_to_load = False
        self.has, self.named = "first", "unknown"
        self.calls: list[str] = []
        self.told = Load()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **how: Any) -> Any:
            self.calls.append(name)
            if self.dead:
                raise ReplicaDown("it is dead")
            await asyncio.sleep(0)
            return getattr(self, f"_{name}")(*args, **how)

        return call

    async def is_healthy(self) -> bool:
        return not self.dead

    def _look(self) -> Load:
        return self.told

    def _pause(self, *, keep: bool) -> None:
        self.paused = True

    def _resume(self) -> None:
        self.paused = False

    def _check(self, path: str) -> None:
        if self.refuses:
            raise FailureError.of(FailureKind.REJECTED, Stage.PUBLISH, f"not mine: {path}")

    def _load(self, path: str, label: str) -> None:
        if self.refuses_to_load:
            raise FailureError.of(FailureKind.REJECTED, Stage.PUBLISH, f"there is no {path}")
        if self.fails:
            self.dead = True
            raise ReplicaDown("it died while loading")
        self.has, self.named = path, label

    def _label(self) -> str:
        return self.named

    def _set_label(self, label: str) -> None:
        self.named = label

    def _adapters(self) -> list[str]:
        return []

    async def close(self) -> None:
        pass


class Scene:
    """A fleet of three replicas that run elsewhere."""

    def __init__(self) -> None:
        self.servers = [Server() for _ in range(3)]
        members: list[Any] = [Member(index, server, None) for index, server in enumerate(self.servers)]  # type: ignore[arg-type]
        self.holdings = Holdings(version=0)
        for server in self.servers:
            server.named = self.holdings.label
        self.said: list[str] = []
        self.fleet = Fleet(
            members, self.holdings, keep=False, restarts=1, start_s=30.0, hang_s=30.0, report=self.said.append
        )
        self.fleet.begin()

    async def publish(self, path: str, version: int) -> None:
        await self.fleet.pause()
        try:
            await self.fleet.load(Weights(Path(path), version))
        finally:
            await self.fleet.resume()

    async def until_up(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.fleet.up) != count:  # noqa: ASYNC110 - a fleet tells nobody but its own
                await asyncio.sleep(0.01)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.fleet.close()


def nothing() -> None:
    pass


async def test_weights_are_in_force_on_all_replicas(scene: Scene) -> None:
    await scene.publish("/w/1", 1)
    assert [server.has for server in scene.servers] == ["/w/1"] * 3
    assert {server.named for server in scene.servers} == {scene.fleet.holdings.label}
    assert scene.fleet.holdings.version == 1
    assert not any(server.paused for server in scene.servers)


async def test_weights_that_one_replica_refuses_are_loaded_by_none(scene: Scene) -> None:
    scene.servers[1].refuses = True
    with pytest.raises(FailureError, match="not mine"):
        await scene.publish("/w/1", 1)
    assert [server.has for server in scene.servers] == ["first"] * 3
    assert scene.fleet.holdings.version == 0
    assert len(scene.fleet.up) == 3


async def test_a_replica_that_dies_while_loading_comes_back_with_the_new_weights_and_not_before(scene: Scene) -> None:
    scene.servers[1].fails = True
    await scene.publish("/w/1", 1)
    assert [member.index for member in scene.fleet.up] == [0, 2]
    assert scene.fleet.holdings.version == 1
    attempts = [await scene.fleet.enter(f"{i}", nothing) for i in range(6)]
    assert {attempt.member.index for attempt in attempts} == {0, 2}
    scene.servers[1].fails = False
    scene.servers[1].dead = False
    await scene.until_up(3)
    assert scene.servers[1].has == "/w/1"


async def test_weights_that_kill_every_replica_are_not_in_force(scene: Scene) -> None:
    for server in scene.servers:
        server.fails = True
    with pytest.raises(FailureError, match="no replica took the weights"):
        await scene.publish("/w/1", 1)
    assert scene.fleet.holdings.version == 0


async def test_a_replica_that_was_only_out_of_sight_keeps_its_weights_and_one_started_anew_is_given_them(
    scene: Scene,
) -> None:
    await scene.publish("/w/1", 1)
    for server in scene.servers[:2]:
        server.calls.clear()
    scene.servers[1].has, scene.servers[1].named = "first", "default"
    for index in (0, 1):
        scene.fleet.suspect(scene.fleet.members[index], "a connection broke")
    await scene.until_up(3)
    assert "load" not in scene.servers[0].calls
    assert scene.servers[1].has == "/w/1"


async def test_when_a_replica_is_lost_its_requests_are_told_and_its_sessions_move(scene: Scene) -> None:
    attempts: dict[str, ReplicaRequest] = {f"{i}": await scene.fleet.enter(f"{i}", nothing) for i in range(6)}
    lost = [session for session, attempt in attempts.items() if attempt.member.index == 1]
    assert len(lost) == 2

    async def run(attempt: ReplicaRequest) -> str | None:
        try:
            async with attempt.running():
                await asyncio.Event().wait()
        except TimeoutError:
            return attempt.down
        return None

    running = {session: asyncio.ensure_future(run(attempt)) for session, attempt in attempts.items()}
    await asyncio.sleep(0)
    scene.servers[1].dead = True
    scene.fleet.suspect(scene.fleet.members[1], "no route")
    assert [await running[session] for session in lost] == ["no route"] * 2
    for session in lost:
        scene.fleet.leave(attempts[session])
        assert (await scene.fleet.enter(session, nothing)).member.index != 1
    for task in running.values():
        task.cancel()


async def test_nobody_enters_between_pause_and_resume(scene: Scene) -> None:
    await scene.fleet.pause()
    waiting = asyncio.ensure_future(scene.fleet.enter("s", nothing))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await scene.fleet.resume()
    assert (await waiting).member.up


async def test_without_any_replica_left_requests_and_scores_fail(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LOST_S", 0.0)
    assert scene.fleet.lost is None
    waiting = []
    for member in scene.fleet.members:
        scene.servers[member.index].dead = True
        scene.fleet.suspect(member, "gone")
    waiting.append(asyncio.ensure_future(scene.fleet.enter("s", nothing)))
    waiting.append(asyncio.ensure_future(scene.fleet.while_scoring(lambda member: member.replica.label())))
    for member in scene.fleet.members:
        scene.fleet._give_up(member, "it will not come back")
    for task in waiting:
        with pytest.raises(FailureError, match="no vLLM replica is left: it will not come back") as caught:
            await task
        assert caught.value.failure.kind is FailureKind.UNREACHABLE
    assert scene.fleet.lost == "it will not come back"


async def test_loads_are_added_up_over_replicas_and_over_their_restarts(scene: Scene) -> None:
    first, second, third = scene.fleet.members
    first.load = Load(waiting=2, kv_usage=0.5, preemptions=3, prefix_hits=10, prefix_queries=20)
    second.load = Load(waiting=1, kv_usage=0.75, preemptions=1)
    third.before, third.load = Load(preemptions=5), Load(preemptions=1, waiting=9)
    third.up = False
    total = total_load(scene.fleet.members)
    assert (total.waiting, total.kv_usage, total.preemptions) == (3, 0.75, 10)
    assert (total.prefix_hits, total.prefix_queries) == (10, 20)


async def test_a_replica_that_may_hold_half_of_new_weights_is_given_those_in_force_again(scene: Scene) -> None:
    await scene.publish("/w/1", 1)
    scene.servers[0].calls.clear()
    scene.servers[0].has = "half of something"
    scene.fleet.suspect(scene.fleet.members[0], "it failed", broken=True)
    await scene.until_up(3)
    assert scene.servers[0].has == "/w/1"


async def test_a_publish_that_is_cancelled_halfway_leaves_no_replica_with_half_of_it(scene: Scene) -> None:
    await scene.publish("/w/1", 1)
    begun = asyncio.Event()

    async def slow(path: str, label: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    scene.servers[2].load = slow  # type: ignore[method-assign]
    publishing = asyncio.ensure_future(scene.publish("/w/2", 2))
    await begun.wait()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    del scene.servers[2].load
    await scene.until_up(3)
    assert [server.has for server in scene.servers] == ["/w/1"] * 3
    assert scene.fleet.holdings.version == 1


class OurProcess:
    """A server of ours, which starts whenever it is told to."""

    how_it_ended = None
    launch = ServerLaunch("vllm-0", "python", [], Path("vllm-0.log"))

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def kill(self) -> None:
        pass

    def last_words(self) -> str:
        return "it printed nothing"


@pytest.mark.parametrize("ours", [True, False])
async def test_a_replica_that_never_takes_the_weights_in_force_is_given_up_after_so_many_tries(
    scene: Scene, ours: bool
) -> None:
    """As where their folder is gone: it would come up, refuse, and be started again for ever."""
    await scene.publish("/w/1", 1)
    member, server = scene.fleet.members[0], scene.servers[0]
    process: Any = OurProcess()
    member.process = process if ours else None
    server.refuses_to_load = True
    scene.fleet.suspect(member, "gone", broken=True)
    async with asyncio.timeout(20):
        while member.gone is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert process.starts == (1 if ours else 0)
    assert len([line for line in scene.said if "does not take the weights" in line]) <= 2
    assert len(scene.fleet.up) == 2
