"""Workers that die, clients that vanish, answers that are lost, servers that are full or frozen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import Self

import httpx
import psutil
import pytest

from quintain.envs import Action, EnvClient, EnvironmentLimits, FailureError, Task, user
from quintain.envs.workers.frames import Advance, Open
from quintain.envs.workers.pool import EnvironmentWorkers
from quintain.failure import FailureKind

from .conftest import SAMPLES

OVER_BOTH = pytest.mark.usefixtures("wire")


async def test_a_worker_that_is_killed_costs_its_episodes_and_is_replaced(serve, failed):
    server = serve("Probe")
    async with server.client() as client:
        env = client.episode()
        worker = (await env.reset(client.tasks("train")[0], seed=0)).info["pid"]
        os.kill(worker, signal.SIGKILL)
        failure = await failed(env, "hello")
        assert (failure.kind, failure.retryable) == (FailureKind.CRASHED, True)
        env = client.episode()
        assert (await env.reset(client.tasks("train")[0], seed=0)).info["pid"] != worker
        assert (await env.step(Action.text("end"))).reward == 1.0


async def test_a_step_asked_for_in_the_moment_in_which_its_worker_is_buried_fails_as_one_that_ran():
    lost = asyncio.get_running_loop().create_future()
    workers = EnvironmentWorkers(f"{SAMPLES}:Probe", {}, 1)
    await workers.start(lambda episodes, failure: lost.set_result((episodes, failure)))
    try:
        in_a_minute = time.monotonic() + 60
        opened = await workers.call(Open("one", Task("0", (user("?"),), "x"), None, 0), in_a_minute)
        os.kill(json.loads(opened.body)["observation"]["info"]["pid"], signal.SIGKILL)
        episodes, failure = await lost  # from here on nobody knows the episode's worker
        assert episodes == {"one"}
        assert (await workers.call(Advance("one", Action.text("hello")), in_a_minute)).failure == failure
    finally:
        await workers.stop()


async def test_a_client_that_vanishes_costs_nothing_after_its_lease(serve, opened, failed):
    server = serve("Probe", limits=EnvironmentLimits(lease_s=0.5, max_episodes=1))
    await opened(server.client())  # and never closed
    server.wait_metric("episodes_live", lambda n: n == 0)
    assert server.metric('episodes_total{how="expired"}') == 1
    async with server.client() as client:
        env = await opened(client)
        server.wait_metric("episodes_known", lambda n: n == 0)
        failure = await failed(env, "hello")
    assert (failure.kind, failure.retryable) == (FailureKind.LOST, True)


_PLAYS = """
import asyncio, sys
from quintain.envs import EnvClient, Task, user
async def main():
    async with EnvClient(sys.argv[1]) as client:
        env = client.episode()
        await env.reset(Task("mine", (user("Guess."),), 3), seed=0)
        renewing = asyncio.create_task(env.keep_lease())
        while True:
            print(flush=True)
            await asyncio.sleep(0.5)
asyncio.run(main())
"""
_PLAYS_OPENENV = """
import json, sys, time
from urllib.request import Request, urlopen
from websockets.sync.client import connect
asked = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}
with urlopen(Request(f"{sys.argv[1]}/mcp", json.dumps(asked).encode())) as answer:
    name = json.load(answer)["result"]["session_id"]
with connect(f"{sys.argv[1].replace('http', 'ws')}/ws?session_id={name}", proxy=None) as ws:
    for asked in ("reset", *100 * ["state"]):
        ws.send(json.dumps({"type": asked}))
        assert json.loads(ws.recv())["type"] != "error"
        print(flush=True)
        time.sleep(0.5)
"""


@pytest.mark.parametrize("plays", [_PLAYS, _PLAYS_OPENENV], ids=["socket", "openenv"])
def test_a_client_that_is_stopped_with_its_connections_open_does_not_outlive_its_lease(serve, plays):
    server = serve("Guess", limits=EnvironmentLimits(lease_s=2.0, max_episodes=1))
    with subprocess.Popen([sys.executable, "-c", plays, server.url], stdout=subprocess.PIPE) as client:
        try:
            for _ in range(7):  # in 3 s: the lease would have run out but for its renewals
                assert client.stdout.readline()
            assert server.metric("episodes_live") == 1
            client.send_signal(signal.SIGSTOP)
            ends = {connection.laddr for connection in psutil.Process(client.pid).net_connections()}
            assert ends  # half-open: it hangs up no more than a machine that is gone
            server.wait_metric("episodes_live", lambda n: n == 0)
            assert server.metric('episodes_total{how="expired"}') == 1
            began = time.monotonic()
            while ends & {connection.raddr for connection in psutil.Process(server.process.pid).net_connections()}:
                assert time.monotonic() - began < 20
            create = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}
            assert "result" in httpx.post(f"{server.url}/mcp", json=create).json()
        finally:
            client.kill()


class Proxy:
    """A server on a free port, each of whose connections is served by `_serve`."""

    port: int

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_) -> None:
        self.server.close()

    async def _serve(self, reader, writer) -> None:
        raise NotImplementedError


class Thief(Proxy):
    """A proxy that passes every request on and loses the first answer to each kind of request."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.lost: list[str] = []

    async def _serve(self, reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        length = next(
            (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0
        )
        body = await reader.readexactly(length)
        async with httpx.AsyncClient(base_url=self.upstream, trust_env=False) as http:
            answer = await http.request(method.decode(), path.decode(), content=body)
        kind = f"{method.decode()} {path.decode().rpartition('/')[2]}"
        if kind not in self.lost:
            self.lost.append(kind)
        else:
            head = f"HTTP/1.1 {answer.status_code} OK\r\ncontent-length: {len(answer.content)}\r\n"
            writer.write(f"{head}connection: close\r\n\r\n".encode() + answer.content)
            await writer.drain()
        writer.close()


async def test_a_lost_answer_is_asked_for_again_and_nothing_is_played_twice(serve, tmp_path, caplog):
    server, runs = serve("Probe"), tmp_path / "runs"
    async with Thief(server.url) as thief, EnvClient(f"http://127.0.0.1:{thief.port}") as client:
        env = client.episode()
        task = (await asyncio.to_thread(client.tasks, "train"))[0]
        await env.reset(task, seed=0)
        step = await env.step(Action.text(f"count {runs}"))
        assert step.observation.messages[0].content == f"count {runs}"
        assert (await env.step(Action.text("end"))).reward == 1.0
    assert len(thief.lost) == 4  # tasks, the socket, create, step
    assert caplog.text.count("has no WebSocket") == 1  # and is not asked for it again
    assert runs.read_bytes() == b"."
    assert server.metric("replays_total") == 2
    assert server.metric("episodes_live") == 0
    assert server.metric('episodes_total{how="done"}') == 1


class Cutter(Proxy):
    """A proxy that cuts its first connection at the first answer, the next at the second, and so on."""

    def __init__(self, upstream: str) -> None:
        self.upstream = int(upstream.rpartition(":")[2])
        self.connections = 0

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        answers = self.connections  # that of the handshake included
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)

        async def ask() -> None:
            while data := await reader.read(1 << 16):
                back.write(data)

        asking = asyncio.create_task(ask())
        for _ in range(answers):
            writer.write(await there.read(1 << 16))
        await there.read(1)
        asking.cancel()
        back.close()
        writer.close()


async def test_a_socket_that_drops_is_opened_again_and_nothing_is_played_twice(serve, tmp_path):
    server, runs = serve("Probe"), tmp_path / "runs"
    task = (await asyncio.to_thread(server.client().tasks, "train"))[0]
    async with Cutter(server.url) as cutter, EnvClient(f"http://127.0.0.1:{cutter.port}") as client:
        env = client.episode()
        await env.reset(task, seed=0)
        step = await env.step(Action.text(f"count {runs}"))
        assert step.observation.messages[0].content == f"count {runs}"
        assert (await env.step(Action.text("end"))).reward == 1.0
        assert cutter.connections == 3
    assert runs.read_bytes() == b"."
    assert server.metric("replays_total") == 2
    assert server.metric('episodes_total{how="done"}') == 1


@OVER_BOTH
async def test_a_full_server_is_asked_again_until_there_is_room(serve, opened):
    server = serve("Probe", limits=EnvironmentLimits(max_episodes=1, queue=1, queue_s=0.2))
    async with server.client() as client:
        first = await opened(client)
        second = asyncio.create_task(opened(client))
        refused = 'failures_total{kind="overloaded",stage="reset"}'
        await asyncio.to_thread(server.wait_metric, refused, lambda n: n >= 1)
        await first.step(Action.text("end"))
        assert (await (await second).step(Action.text("end"))).reward == 1.0


async def test_a_client_gives_up_on_a_full_server_when_its_time_is_up(serve, opened):
    server = serve("Probe", limits=EnvironmentLimits(max_episodes=1, queue=1, queue_s=0.1))
    async with server.client(timeout_s=1.0) as client:
        await opened(client)
        with pytest.raises(FailureError) as error:
            await opened(client)
    assert (error.value.failure.kind, error.value.failure.retryable) == (FailureKind.OVERLOADED, True)


@OVER_BOTH
async def test_episodes_that_never_begin_are_given_up_in_time_wherever_they_wait(serve, opened):
    server = serve("Probe", limits=EnvironmentLimits(max_episodes=1))
    async with server.client(timeout_s=1.0, max_connections=2) as client:  # one of them for creating
        await opened(client)
        began = time.monotonic()
        results = await asyncio.gather(*(opened(client) for _ in range(3)), return_exceptions=True)
        assert time.monotonic() - began < 5
    assert [result.failure.kind for result in results] == [FailureKind.TIMEOUT] * 3


@OVER_BOTH
async def test_a_server_that_freezes_is_given_up_in_time(serve, opened, failed):
    server = serve("Probe")
    async with server.client(timeout_s=1.0) as client:
        env = await opened(client)
        frozen = psutil.Process(server.process.pid)
        frozen.suspend()
        try:
            began = time.monotonic()
            assert (await failed(env, "hello")).kind is FailureKind.TIMEOUT
            assert time.monotonic() - began < 5
        finally:
            frozen.resume()


async def test_something_else_at_the_address_is_told_apart():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with EnvClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(FailureError, match="is no Metadata") as error:
            await client.metadata()
    server.close()
    assert (error.value.failure.kind, error.value.failure.retryable) == (FailureKind.INVALID, False)
