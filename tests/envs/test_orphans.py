"""A server that ends, in whatever way, takes every process below it along."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx
import pytest

from quintain.envs import Action, EnvironmentLimits, FailureError, Task, user
from quintain.failure import FailureKind


async def test_a_killed_server_is_noticed_within_the_clients_patience_and_leaves_no_process(
    serve, gone, until, tmp_path, opened, failed
):
    server, begun = serve("Probe"), tmp_path / "begun"
    server.wait_metric("workers", lambda n: n == 2)
    async with server.client(patience_s=1.0) as client:
        env, other = await opened(client), await opened(client)
        child = int((await other.step(Action.text("spawn"))).observation.messages[0].content)
        processes = [*server.tree()]
        assert child in [process.pid for process in processes]
        waiting = asyncio.create_task(failed(env, f"hang {begun}"))
        await until(begun.exists)
        began = time.monotonic()
        os.kill(server.process.pid, signal.SIGKILL)
        assert (await waiting).kind is FailureKind.UNREACHABLE
        assert (await failed(other, "hello")).kind is FailureKind.UNREACHABLE
        assert time.monotonic() - began < 10
        with pytest.raises(FailureError, match="no answer from the environment server at"):
            await client.episode().reset(Task("any"), seed=0)
    assert gone(processes) == []


async def test_a_blocked_worker_and_its_children_do_not_outlive_a_killed_server(serve, gone, until, opened, failed):
    server = serve("Probe", limits=EnvironmentLimits(step_s=60))
    async with server.client(patience_s=0.5) as client:
        env = await opened(client)
        await env.step(Action.text("spawn"))
        waiting = asyncio.create_task(failed(env, "block"))
        await until(lambda: _busy(server))
        processes = server.tree()
        os.kill(server.process.pid, signal.SIGKILL)
        assert gone(processes) == []
        await waiting


def _busy(server) -> bool:
    """Whether a process of the server is burning the processor."""
    return any(process.cpu_percent(0.1) > 30 for process in server.tree()[1:])


def test_the_server_ends_with_its_launcher(serve, gone):
    server = serve("Probe")
    processes = server.tree()
    server.lifeline.close()
    assert gone(processes) == []
    assert server.process.wait(10) == 0


async def test_checkers_do_not_outlive_a_killed_server(serve, gone):
    server = serve("math")
    async with server.client() as client:
        hard = Task("hard", (user("?"),), r"\frac{x^2}{2}")  # nothing the fast path can decide
        env = client.episode()
        await env.reset(hard, seed=0)
        assert (await env.step(Action.text(r"$\frac{1}{2} x^2$"))).reward == 1.0
    item = {"answer": r"$\frac{1}{2} x^2$", "reference": hard.reference}
    asked = {"verifier": "math", "items": [item]}
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:
        assert (await http.post("/v1/verify", json=asked)).json()["verdicts"][0]["score"] == 1.0
    processes = server.tree()
    assert len(processes) > 6  # the server, its workers with their guards, and checkers below both
    os.kill(server.process.pid, signal.SIGKILL)
    assert gone(processes) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_is_told_to_stop_does_so_quietly_with_everything_below_it(serve, gone, number, opened):
    server = serve("Probe")
    server.wait_metric("workers", lambda n: n == 2)
    async with server.client() as client:
        env = await opened(client)
        await env.step(Action.text("spawn"))
        processes = server.tree()
        server.process.send_signal(number)
        assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert gone(processes) == []
    assert server.log.read_text() == ""


@pytest.mark.usefixtures("wire")
async def test_a_step_in_progress_is_given_a_moment_when_the_server_stops_and_then_an_answer(
    serve, gone, until, tmp_path, opened, failed
):
    server, begun, gate = serve("Probe"), [tmp_path / "1", tmp_path / "2"], tmp_path / "gate"
    async with server.client(patience_s=0.5) as client:
        slow, endless = await opened(client), await opened(client)
        playing = asyncio.create_task(slow.step(Action.text(f"wait {gate} {begun[0]}")))
        hanging = asyncio.create_task(failed(endless, f"hang {begun[1]}"))
        await until(lambda: all(path.exists() for path in begun))
        processes = server.tree()
        server.process.terminate()
        gate.touch()
        assert (await playing).reward == 0.0
        assert (await hanging).kind is FailureKind.UNREACHABLE
        assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert gone(processes) == []
    assert server.log.read_text() == ""


def test_a_server_that_is_told_to_stop_while_workers_start_leaves_nothing(serve, gone):
    server = serve("Probe", workers=3)  # the others are still starting
    processes = server.tree()
    assert server.stop() == 0
    assert gone(processes) == []
