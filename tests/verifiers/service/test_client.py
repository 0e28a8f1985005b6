"""The clients against real services: what comes back, what is asked again, and what is said clearly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.client import AsyncVerifierClient, VerifierClient
from quintain.verifiers.service.limits import ServiceLimits

ITEMS = [Item(answer, "4") for answer in ("4", "5", "It is 4", "", r"\frac{8}{2}")]


def test_a_client_without_a_loop_gives_the_verdicts_in_order(service):
    with VerifierClient(service.url) as client:
        verdicts = client.verify("math", ITEMS, deadline_s=10)
        assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 1.0]
        assert client.verify("exact", [("a", "a"), ("b", "a")])[1].outcome is Outcome.WRONG
        assert {info.name for info in client.verifiers()} >= {"math", "code", "probe"}
        assert client.verify("exact", []) == []


async def test_both_clients_work_beside_a_running_loop(service):
    async with AsyncVerifierClient(service.url) as client:
        first, second = await asyncio.gather(client.verify("math", ITEMS), client.verify("exact", ITEMS))
    assert [verdict.score for verdict in first] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert [verdict.score for verdict in second] == [1.0, 0.0, 0.0, 0.0, 0.0]
    with VerifierClient(service.url) as blocking:
        assert blocking.verify("math", ITEMS)[0].score == 1.0


async def test_many_items_are_sent_in_batches_and_come_back_in_order(service):
    items = [Item(str(number % 7), "3") for number in range(1000)]
    async with AsyncVerifierClient(service.url, batch_items=64) as client:
        verdicts = await client.verify("exact", items)
        assert [verdict.score for verdict in verdicts] == [float(number % 7 == 3) for number in range(1000)]
        streamed = dict([pair async for pair in client.stream("exact", items)])
    assert [streamed[number].score for number in range(1000)] == [float(number % 7 == 3) for number in range(1000)]


def test_a_stream_gives_what_is_ready_while_the_rest_waits(service, tmp_path):
    with VerifierClient(service.url) as client:
        found = client.stream("probe", [(f"wait {tmp_path / 'go'}", None), ("right", None), ("wrong", None)])
        early = dict([next(found), next(found)])
        assert {index: verdict.score for index, verdict in early.items()} == {1: 1.0, 2: 0.0}
        (tmp_path / "go").touch()
        assert [(index, verdict.score) for index, verdict in found] == [(0, 1.0)]


def test_a_stream_that_is_left_is_left_by_the_service_too(service, tmp_path, waiting):
    with VerifierClient(service.url) as client:
        found = client.stream("probe", [(f"wait {tmp_path / 'never'}", None), ("right", None)])
        next(found)
        found.close()
        waiting(lambda: (tmp_path / "never.cancelled").exists(), "its item was ended")
        service.wait_metric("items_queued", 0)


async def test_what_cannot_be_sent_has_its_verdict_at_once_and_costs_the_others_nothing(service):
    loop: list[object] = []
    loop.append(loop)
    odd = [("half \ud800", "x"), (None, "x"), ("x", object()), ("x", float("nan")), ("x", loop), ("x", "x")]
    async with AsyncVerifierClient(service.url) as client:
        verdicts = await client.verify("exact", odd)
    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes == [Outcome.UNPARSABLE] * 2 + [Outcome.BAD_REFERENCE] * 3 + [Outcome.CORRECT]


@pytest.mark.parametrize(
    ("verifier", "options", "message"),
    [("mth", {}, "did you mean 'math'?"), ("math", {"workers": 5}, "operator"), ("exact", {"nfk": 1}, "nfkc")],
)
async def test_a_refusal_is_the_services_own_sentence(service, verifier, options, message):
    async with AsyncVerifierClient(service.url) as client:
        with pytest.raises(FailureError, match=message) as error:
            await client.verify(verifier, ITEMS, options)
        with pytest.raises(FailureError, match=message):
            [pair async for pair in client.stream(verifier, ITEMS, options)]
    assert error.value.failure.kind is FailureKind.REJECTED


@pytest.mark.parametrize("make", [VerifierClient, AsyncVerifierClient])
def test_what_is_no_address_and_what_is_no_plain_data_is_said(make):
    with pytest.raises(QuintainError, match="the verifier service looks like http://"):
        make("localhost:8100")
    with pytest.raises(QuintainError, match="batch_items is from 1 to 4096"):
        make("http://localhost", batch_items=0)
    if make is VerifierClient:
        with make("http://localhost") as client, pytest.raises(QuintainError, match="plain data"):
            client.verify("math", [], {"a": object()})


async def test_a_service_that_is_full_is_asked_again_when_it_said(serve, tmp_path, waiting):
    service = serve(limits=ServiceLimits(queue_items=2))
    async with AsyncVerifierClient(service.url, batch_items=2) as client:
        held = asyncio.create_task(client.verify("probe", [(f"wait {tmp_path / 'go'}", None)] * 2))
        await asyncio.to_thread(waiting, lambda: (tmp_path / "go.begun").exists())
        late = asyncio.create_task(client.verify("probe", [("right", None), ("wrong", None)]))
        refused = 'requests_total{route="POST /v1/verify",status="429"}'
        await asyncio.to_thread(waiting, lambda: service.metric(refused) >= 1)
        (tmp_path / "go").touch()
        assert [verdict.score for verdict in await late] == [1.0, 0.0]
        assert len(await held) == 2


async def test_a_service_that_never_has_room_is_given_up_in_time(serve, tmp_path, waiting):
    service = serve(limits=ServiceLimits(queue_items=1))
    async with AsyncVerifierClient(service.url, timeout_s=3) as client, AsyncVerifierClient(service.url) as other:
        held = asyncio.create_task(other.verify("probe", [(f"wait {tmp_path / 'go'}", None)]))
        await asyncio.to_thread(waiting, lambda: (tmp_path / "go.begun").exists())
        began = time.monotonic()
        with pytest.raises(FailureError) as error:
            await client.verify("probe", [("right", None)])
        assert error.value.failure.kind is FailureKind.OVERLOADED
        assert time.monotonic() - began < 10
        (tmp_path / "go").touch()
        await held


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_killed_service_did_not_answer_is_asked_again_of_the_next(serve, tmp_path, waiting, stream):
    """And only that: the verdicts that came before it died are kept."""
    service = serve()
    items = [("right first", None), (f"wait {tmp_path / 'go'}", None), ("wrong", None)]
    async with AsyncVerifierClient(service.url, patience_s=30) as client:
        found: list[tuple[int, float | None]] = []

        async def ask() -> None:
            if stream:
                async for index, verdict in client.stream("probe", items):
                    found.append((index, verdict.score))
            else:
                found.extend(enumerate(verdict.score for verdict in await client.verify("probe", items)))

        asking = asyncio.create_task(ask())
        await asyncio.to_thread(waiting, lambda: (tmp_path / "go.begun").exists())
        if stream:
            await asyncio.to_thread(waiting, lambda: len(found) == 2)
        os.kill(service.process.pid, signal.SIGKILL)
        await asyncio.to_thread(service.process.wait)
        (tmp_path / "go").touch()
        again = await asyncio.to_thread(serve, port=service.port)
        await asking
        assert sorted(found) == [(0, 1.0), (1, 1.0), (2, 0.0)]
        judged = await asyncio.to_thread(again.metric, 'items_total{holder="anybody",verifier="probe"}')
        assert judged == (1 if stream else 3)


async def test_what_a_stopping_service_did_not_finish_is_asked_again_of_the_next(serve, tmp_path, waiting):
    service = serve(limits=ServiceLimits(grace_s=0.2))
    items = [("right", None), (f"wait {tmp_path / 'go'}", None)]
    async with AsyncVerifierClient(service.url, patience_s=30) as client:
        asking = asyncio.create_task(client.verify("probe", items))
        await asyncio.to_thread(waiting, lambda: (tmp_path / "go.begun").exists())
        assert await asyncio.to_thread(service.stop) == 0
        (tmp_path / "go").touch()
        again = await asyncio.to_thread(serve, port=service.port)
        assert [verdict.score for verdict in await asking] == [1.0, 1.0]
        judged = await asyncio.to_thread(again.metric, 'items_total{holder="anybody",verifier="probe"}')
    assert judged == 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_service_that_is_not_there_is_said_within_the_patience():
    with VerifierClient(f"http://127.0.0.1:{free_port()}", patience_s=0.5) as client:
        began = time.monotonic()
        with pytest.raises(FailureError, match="no answer from the verifier service") as error:
            client.verify("exact", [("a", "a")])
        assert error.value.failure.kind is FailureKind.UNREACHABLE
        assert time.monotonic() - began < 10


def test_a_closed_client_begins_anew_and_leaves_no_thread(service):
    client = VerifierClient(service.url)
    for _ in range(2):
        assert client.verify("exact", [("a", "a")])[0].score == 1.0
        client.close()
    for thread in threading.enumerate():
        if thread.name == "verifier-client":
            thread.join(10)
            assert not thread.is_alive()


def test_a_token_is_sent(serve):
    service = serve(tokens={"ann": "sesame"})
    with VerifierClient(service.url, "sesame") as client:
        assert client.verify("exact", [("a", "a")])[0].score == 1.0
    with VerifierClient(service.url) as client, pytest.raises(FailureError, match="wants its token"):
        client.verify("exact", [("a", "a")])


async def test_the_remote_verifier_gives_the_verdicts_of_the_service(service):
    async with get_verifier("remote", url=service.url, verifier="math", options={"deadline_s": 9.0}) as remote:
        verdicts = await remote.verify(ITEMS, deadline_s=10)
        assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 1.0]
        version = await asyncio.to_thread(lambda: remote.version)
        assert "math-verify" in version
    parts = [{"verifier": "remote", "options": {"url": service.url, "verifier": "exact"}}, {"verifier": "exact"}]
    async with get_verifier("rubric", parts=parts) as rubric:
        assert (await rubric.verify([Item("a", "a")]))[0].score == 1.0


async def test_a_remote_verifier_whose_service_is_gone_has_failures_and_no_scores():
    url = f"http://127.0.0.1:{free_port()}"
    async with get_verifier("remote", url=url, verifier="math", patience_s=0.1) as remote:
        (verdict,) = await remote.verify([Item("4", "4")])
    assert verdict.score is None
    assert verdict.failure is not None
    assert verdict.failure.retryable


async def test_a_remote_verifier_that_the_service_refuses_raises(service):
    async with get_verifier("remote", url=service.url, verifier="mth") as remote:
        with pytest.raises(QuintainError, match="did you mean 'math'"):
            await remote.verify(ITEMS)
    with pytest.raises(QuintainError, match="THE_TOKEN is not set"):
        get_verifier("remote", url=service.url, verifier="math", token_env="THE_TOKEN")


def test_many_threads_share_one_client(service):
    with VerifierClient(service.url) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.verify, "exact", [(str(number), "3")]) for number in range(40)]
        assert [one.result()[0].score for one in asked] == [float(number == 3) for number in range(40)]
