"""Sessions begin, end once, and are handed over; those that are left alone, or too many, are told so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from quintain.codec import unpack
from quintain.failure import FailureError, FailureKind
from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway import FailRequest, Gateway, GatewayLimits, OpenSession, Outbox, RewardRequest
from quintain.rollout.gateway.chat import read_chat
from quintain.rollout.gateway.errors import ApiError
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.trajectory import Ending, Group, Trajectory

from ...fake_engine import hang_on
from .stage import CHAT, scripted, staged

ASK = b'{"model": "policy", "messages": [{"role": "user", "content": "q"}]}'


def made(on_finished: Callable[[Trajectory], Awaitable[None]], engine: Any = None, **options: Any) -> Gateway:
    return Gateway(
        engine or scripted("yes"), CHAT, sampling=Sampling(16), on_finished=on_finished, **options
    )  # fmt: skip


async def test_the_same_request_opens_the_same_session_and_another_is_refused() -> None:
    gateway = made(Outbox())
    first = gateway.open(OpenSession(id="a", task="t"))
    assert gateway.open(OpenSession(id="a", task="t")) == first
    with pytest.raises(ApiError, match="opened by another request") as caught:
        gateway.open(OpenSession(id="a", task="u"))
    assert caught.value.status == 409
    with pytest.raises(ApiError, match="an id is 1 to 64"):
        gateway.open(OpenSession(id="../a"))
    with pytest.raises(ApiError, match="max_turns must be at least 1"):
        gateway.open(OpenSession(max_turns=0))
    await gateway.close()


async def test_a_session_ends_once_and_a_repeated_reward_is_answered_again() -> None:
    outbox = Outbox()
    gateway = made(outbox)
    gateway.open(OpenSession(id="a"))
    await gateway.chat("a", read_chat(ASK))
    ends = await asyncio.gather(*(gateway.reward("a", RewardRequest(0.5)) for _ in range(3)))
    assert ends[0] == ends[1] == ends[2] == await gateway.reward("a", RewardRequest(0.5)) == gateway.status("a")
    assert (ends[0].state, ends[0].reward, ends[0].turns) == ("done", 0.5, 1)
    for other in (gateway.reward("a", RewardRequest(0.6)), gateway.fail("a", FailRequest("no"))):
        with pytest.raises(ApiError, match="ended by another request"):
            await other
    with pytest.raises(ApiError, match="has ended") as caught:
        await gateway.chat("a", read_chat(ASK))
    assert caught.value.status == 410
    handed: list[Trajectory] = []
    async for trajectory in outbox:
        handed.append(trajectory)
        if trajectory.id == "b":
            break
        gateway.open(OpenSession(id="b"))
        await gateway.fail("b", FailRequest("the agent crashed"))
    assert [t.id for t in handed] == ["a", "b"]
    assert gateway.counters.ended == {"rewarded": 1, "failed": 1}
    await gateway.close()


async def test_a_session_that_cannot_be_written_ends_as_a_failure_and_frees_its_place(tmp_path: Path) -> None:
    with FinishedSessions(tmp_path / "sessions.bin") as kept:
        gateway = made(kept.append, limits=GatewayLimits(max_sessions=1))
        for name, info in (("long", {"n": 2**70}), ("odd", {"deep": [object()]}), ("nan", {"loss": float("nan")})):
            gateway.open(OpenSession(id=name, metadata={"m": -(2**70)}))
            await gateway.chat(name, read_chat(ASK))
            await gateway.reward(name, RewardRequest(1.0, info=info))
        long, odd, nan = [unpack(kept.get(place) or b"", Group).trajectories[0] for place in range(3)]
        assert (long.reward, long.info["n"], long.info["metadata"]) == (1.0, 2**70, {"m": -(2**70)})
        for row, says in ((odd, r"info['deep'][0] is of type object"), (nan, "info['loss'] is nan")):
            assert row.failure is not None
            assert (row.failure.kind, row.reward, len(row.turns)) == (FailureKind.INVALID, None, 1)
            assert says in row.failure.message
        assert gateway.status("odd").failure == odd.failure
        assert gateway.live == 0
        await gateway.close()


@pytest.mark.parametrize("field", ["index", "member", "seed"])
async def test_numbers_of_ours_beyond_64_bits_are_refused_when_a_session_is_opened(field: str) -> None:
    async with staged(scripted("yes")) as stage:
        answer = await stage.http.post("/sessions", json={field: 2**63})
        assert (answer.status_code, field in answer.text) == (400, True)
        assert stage.gateway.live == 0


async def test_a_sink_that_fails_leaves_the_session_live_to_be_ended_again() -> None:
    taken: list[Trajectory] = []
    broken = True

    async def sink(trajectory: Trajectory) -> None:
        if broken:
            raise OSError("the disk is full")
        taken.append(trajectory)

    gateway = made(sink)
    gateway.open(OpenSession(id="a"))
    await gateway.chat("a", read_chat(ASK))
    with pytest.raises(FailureError, match="the disk is full"):
        await gateway.reward("a", RewardRequest(1.0))
    assert gateway.status("a").state == "live"
    broken = False
    assert (await gateway.reward("a", RewardRequest(1.0))).state == "done"
    assert [len(t.turns) for t in taken] == [1]
    await gateway.close()


async def test_a_harness_that_hangs_up_while_the_reward_is_written_has_ended_the_session() -> None:
    writing, written = asyncio.Event(), asyncio.Event()
    taken: list[Trajectory] = []

    async def sink(trajectory: Trajectory) -> None:
        writing.set()
        await written.wait()
        taken.append(trajectory)

    gateway = made(sink)
    gateway.open(OpenSession(id="a"))
    await gateway.chat("a", read_chat(ASK))
    ending = asyncio.create_task(gateway.reward("a", RewardRequest(1.0)))
    await writing.wait()
    ending.cancel()
    await asyncio.wait([ending])
    written.set()
    assert (await gateway.reward("a", RewardRequest(1.0))).state == "done"
    assert len(taken) == 1
    await gateway.close()


async def test_a_session_that_nobody_calls_has_failed_when_its_lease_is_over() -> None:
    now_s = [0.0]
    outbox, hung = Outbox(), asyncio.Event()
    engine = scripted("yes", fail=hang_on(2, hung))
    gateway = made(outbox, engine, limits=GatewayLimits(lease_s=10), clock=lambda: now_s[0])
    gateway.open(OpenSession(id="left"))
    gateway.open(OpenSession(id="called"))
    await gateway.chat("left", read_chat(ASK))
    calling = asyncio.create_task(gateway.chat("called", read_chat(ASK)))
    while engine.calls < 2:  # noqa: ASYNC110 - an engine tells its progress by its counters only
        await asyncio.sleep(0)
    now_s[0] = 9.9
    await gateway.sweep()
    assert gateway.live == 2
    now_s[0] = 10.0
    await gateway.sweep()
    lost = gateway.status("left")
    assert (gateway.live, lost.state) == (1, "failed")
    assert lost.failure is not None
    assert (lost.failure.kind, lost.failure.retryable) == (FailureKind.LOST, True)
    hung.set()
    await calling
    now_s[0] = 19.9
    await gateway.sweep()
    assert gateway.status("called").state == "live"
    async for trajectory in outbox:
        assert (trajectory.ending, trajectory.reward, len(trajectory.turns)) == (Ending.FAILED, None, 1)
        break
    await gateway.close()


async def test_leases_are_looked_after_without_being_asked() -> None:
    async with staged(scripted("yes"), limits=GatewayLimits(lease_s=0.2)) as stage:
        session, _ = await stage.open()
        trajectory = await stage.taken()
    assert trajectory.id == session
    assert trajectory.failure is not None
    assert trajectory.failure.kind is FailureKind.LOST


async def test_sessions_are_bounded_and_room_comes_back() -> None:
    async with staged(scripted("yes"), limits=GatewayLimits(max_sessions=2)) as stage:
        first, client = await stage.open()
        await stage.open()
        refused = await stage.http.post("/sessions", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["failure"]["kind"] == "overloaded"
        await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "q"}])
        await stage.reward(first)
        await stage.open()


async def test_calls_of_one_session_are_bounded() -> None:
    hung = asyncio.Event()
    engine = scripted("yes", fail=hang_on(1, hung))
    async with staged(engine, limits=GatewayLimits(max_calls=1)) as stage:
        _, client = await stage.open()
        first = asyncio.create_task(
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "q"}])
        )
        while engine.calls < 1:  # noqa: ASYNC110 - an engine tells its progress by its counters only
            await asyncio.sleep(0)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "r"}])
        hung.set()
        await first


async def test_ending_a_session_ends_its_calls() -> None:
    hung = asyncio.Event()
    engine = scripted("yes", fail=hang_on(2, hung))
    async with staged(engine) as stage:
        session, client = await stage.open()
        await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "q"}])
        straggler = asyncio.create_task(
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "r"}])
        )
        while engine.calls < 2:  # noqa: ASYNC110 - an engine tells its progress by its counters only
            await asyncio.sleep(0)
        trajectory = await stage.reward(session, 1.0)
        with pytest.raises(openai.APIStatusError, match="was ended while this was sampled") as caught:
            await straggler
    assert (caught.value.status_code, len(trajectory.turns), engine.stats().running) == (410, 1, 0)


async def test_closing_ends_every_session_as_cancelled_and_opens_no_more() -> None:
    outbox = Outbox()
    gateway = made(outbox)
    gateway.open(OpenSession(id="a"))
    await gateway.chat("a", read_chat(ASK))
    await gateway.close()
    await gateway.close()
    with pytest.raises(ApiError, match="opens no more sessions") as caught:
        gateway.open(OpenSession())
    assert caught.value.status == 503
    async for trajectory in outbox:
        assert trajectory.failure is not None
        assert trajectory.failure.kind is FailureKind.CANCELLED
        break


async def test_only_so_many_ended_sessions_are_remembered() -> None:
    gateway = made(Outbox(), limits=GatewayLimits(finished=2))
    for name in "abc":
        gateway.open(OpenSession(id=name))
        await gateway.fail(name, FailRequest("x"))
    with pytest.raises(ApiError, match="there is no session 'a'"):
        gateway.status("a")
    assert gateway.status("b").state == gateway.status("c").state == "failed"
    await gateway.close()


async def test_what_breaks_in_the_gateway_itself_is_a_failure_of_the_session() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise KeyError("a bug")

    outbox = Outbox()
    gateway = made(outbox)
    gateway.chat_layer = Broken()  # type: ignore[assignment]
    gateway.open(OpenSession(id="a"))
    with pytest.raises(FailureError, match="KeyError"):
        await gateway.chat("a", read_chat(ASK))
    end = await gateway.reward("a", RewardRequest(1.0))
    assert (end.state, end.reward) == ("failed", None)
    await gateway.close()
