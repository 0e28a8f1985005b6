"""OpenEnv's wire: spoken by hand, and (slow) with OpenEnv 0.10 itself on the other side, in an environment apart."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from quintain.envs import Action, EnvironmentLimits, FailureError, LocalClient, check_environment
from quintain.envs.openenv import OpenEnvEnvironment
from quintain.failure import FailureKind

from .venvs import python_with

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def guess(serve_all):
    return serve_all("Guess", limits=EnvironmentLimits(max_episodes=2, queue=1, queue_s=0.2, body_bytes=20_000))


async def ask(ws: Any, message: Any) -> dict[str, Any]:
    await ws.send(message if isinstance(message, str | bytes) else json.dumps(message))
    return json.loads(await ws.recv())


async def test_an_episode_by_hand_and_every_error_has_its_code(guess):
    async with connect(guess.url.replace("http", "ws") + "/ws", proxy=None) as ws:
        for message, code, says in (
            ("{", "INVALID_JSON", "Invalid JSON"),
            (b"\xff", "INVALID_JSON", "Invalid JSON"),
            ("[]", "UNKNOWN_TYPE", "Unknown message type"),
            ({"type": "dance"}, "UNKNOWN_TYPE", "Unknown message type: dance"),
            ({"type": "step", "data": {"content": "1"}}, "EXECUTION_ERROR", "reset first"),
            ({"type": "reset", "data": {"seed": "x"}}, "VALIDATION_ERROR", "Invalid message"),
            ({"type": "step", "data": {"content": "é" * 10_000}}, "EXECUTION_ERROR", "at most 20000 bytes"),
            ({"type": "reset", "data": {"split": "tain"}}, "EXECUTION_ERROR", "did you mean 'train'"),
        ):
            answer = await ask(ws, message)
            assert (answer["type"], answer["data"]["code"]) == ("error", code), answer
            assert says in answer["data"]["message"]
        first = (await ask(ws, {"type": "reset", "data": {"seed": 3}}))["data"]
        assert first["observation"]["messages"][0]["content"] == "Guess my number."
        assert (first["reward"], first["done"], first["metadata"]) == (None, False, {"turns": 3})
        wrong = (await ask(ws, {"type": "step", "data": {"content": 5}}))["data"]
        assert (wrong["code"], len(wrong["errors"])) == ("VALIDATION_ERROR", 1)
        last = (await ask(ws, {"type": "step", "data": {"content": "5"}}))["data"]
        assert (last["reward"], last["done"]) == (1.0, True)
        assert last["metadata"]["rewards"] == {"found": 1.0, "late": 0.0}
        over = (await ask(ws, {"type": "step", "data": {"content": "5"}}))["data"]
        assert (over["code"], over["failure"]["kind"]) == ("EXECUTION_ERROR", "rejected")
    guess.wait_metric("episodes_live", lambda live: live == 0)


async def test_a_full_server_says_so_and_a_connection_that_breaks_leaves_nothing(guess, until):
    url = guess.url.replace("http", "ws") + "/ws"
    async with connect(url, proxy=None) as one, connect(url, proxy=None) as two, connect(url, proxy=None) as three:
        assert [(await ask(ws, {"type": "reset"}))["type"] for ws in (one, two)] == ["observation"] * 2
        full = (await ask(three, {"type": "reset"}))["data"]
        assert (full["code"], full["active_sessions"], full["max_sessions"]) == ("CAPACITY_REACHED", 2, 2)
        one.transport.abort()
        await until(lambda: guess.metric("episodes_live") == 1)
        await two.send('{"type": "close"}')
        await until(lambda: guess.metric("episodes_live") == 0)


async def test_an_environment_that_cannot_be_made_or_reset_is_a_factory_error(serve_all):
    server = serve_all("Probe")
    async with (
        connect(server.url.replace("http", "ws") + "/ws", proxy=None) as ws,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        told = (await ask(ws, {"type": "reset", "data": {"index": 1}}))["data"]
        assert (told["code"], told["factory_name"], told["failure"]["kind"]) == ("FACTORY_ERROR", "Probe", "crashed")
        assert "ValueError" in told["message"]
        assert (await ask(ws, {"type": "reset", "data": {"index": 0}}))["type"] == "observation"
        assert (await http.post("/reset", json={"index": 1})).status_code == 500


async def test_a_server_of_ours_is_an_environment_by_this_wire_too(guess):
    async with LocalClient(OpenEnvEnvironment, {"url": guess.url, "field": "content"}) as client:
        env = client.episode()
        first = await env.reset(client.tasks("train")[3], seed=0)
        assert first.messages[0].text == "Guess my number."
        steps = [await env.step(Action.text(said)) for said in ("0", "5")]
        assert [(step.reward, step.terminated) for step in steps] == [(-0.125, False), (1.0, True)]
        await env.reset(client.tasks("train")[3], seed=0)
        last = [await env.step(Action.text("0")) for _ in range(3)][-1]
        assert (last.terminated, last.truncated) == (False, True)
        await env.close()
    with pytest.raises(FailureError, match="no answer from the OpenEnv server at http") as gone:
        await (
            LocalClient(OpenEnvEnvironment, {"url": "http://127.0.0.1:9"})
            .episode()
            .reset(OpenEnvEnvironment.tasks("train", url="")[0], seed=0)
        )
    assert gone.value.failure.kind is FailureKind.UNREACHABLE


@pytest.fixture(scope="module")
def openenv() -> str:
    return python_with("openenv-0.10", "openenv==0.10.0")


async def test_the_pages_play_a_session_that_a_client_named_and_its_socket_shares(guess, until):
    async with httpx.AsyncClient(base_url=guess.url) as http:

        async def rpc(method: str, **params: Any) -> dict[str, Any]:
            asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            return (await http.post("/mcp", json=asked)).json()

        alone = (await http.post("/reset", json={"seed": 3, "anything": 1})).json()
        assert (alone["observation"]["messages"][0]["content"], alone["done"]) == ("Guess my number.", False)
        await until(lambda: guess.metric("episodes_live") == 0)
        name, other = [(await rpc("openenv/session/create"))["result"]["session_id"] for _ in range(2)]
        full = (await rpc("openenv/session/create"))["error"]
        assert (full["code"], full["data"]) == (-32000, {"active_sessions": 2, "max_sessions": 2})
        early = await http.post("/step", json={"session_id": name, "action": {"content": "5"}})
        assert (early.status_code, "reset first" in early.text) == (400, True)
        assert (await http.post("/reset", json={"session_id": name, "seed": 3})).status_code == 200
        async with connect(f"{guess.url.replace('http', 'ws')}/ws?session_id={name}", proxy=None) as ws:
            assert (await ask(ws, {"type": "step", "data": {"content": "0"}}))["data"]["reward"] == -0.125
            for taken in (name, "nobody"):
                async with connect(f"{guess.url.replace('http', 'ws')}/ws?session_id={taken}", proxy=None) as second:
                    assert json.loads(await second.recv())["data"]["code"] == "SESSION_ERROR"
            listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
            assert (await ask(ws, {"type": "mcp", "data": listed}))["data"]["result"]["tools"] == []
            assert (await rpc("openenv/session/close", session_id=other))["result"]["closed"] is True
        state = (await http.get("/state", params={"session_id": name})).json()
        assert (state["step_count"], state["task_id"]) == (1, "train-3")
        last = (await http.post("/step", json={"session_id": name, "action": {"content": "5"}})).json()
        assert (last["reward"], last["done"]) == (1.0, True)
        assert (await rpc("openenv/session/close", session_id=name))["result"]["closed"] is True
        for answer in (await rpc("tools/list", session_id=name), await rpc("dance")):
            assert answer["error"]["code"] in (-32602, -32601)
        assert (await http.get("/state", params={"session_id": name})).status_code == 404
        assert (await http.get("/state")).json() == {"episode_id": None, "step_count": 0}
        assert set((await http.get("/schema")).json()) >= {"action", "observation", "reset_observation", "state"}
    await until(lambda: guess.metric("episodes_live") == 0)


async def test_the_task_api_tells_the_splits_and_their_tasks_without_a_reference(guess):
    async with httpx.AsyncClient(base_url=guess.url) as http:

        async def asked(page: str, **body: Any) -> tuple[int, Any]:
            answer = await http.post(f"/{name}/{page}", json=body)
            assert "reference" not in answer.text
            return answer.status_code, answer.json()

        (name,) = (await http.get("/list_environments")).json()
        splits = (await http.get(f"/{name.upper()}/splits")).json()
        assert splits == [{"name": "train", "type": "train"}, {"name": "heldout", "type": "validation"}]
        assert await asked("num_tasks", split="heldout") == (200, {"num_tasks": 7})
        listed = (await asked("tasks", split="heldout"))[1]
        assert (len(listed["tasks"]), listed["env_name"]) == (7, name)
        some = (await asked("task_range", split="heldout", start=5, stop=7))[1]
        assert [task["id"] for task in some["tasks"]] == ["heldout-5", "heldout-6"]
        assert (await asked("task", split="train", index=3))[1]["task"]["id"] == "train-3"
        for page, body, status in (
            ("task", {"split": "heldout", "index": 7}, 400),
            ("task", {"split": "heldout"}, 400),
            ("num_tasks", {"split": "train"}, 400),
            ("tasks", {"split": "train"}, 400),  # which is endless: some of it would look like all
            ("num_tasks", {"split": "tain"}, 404),
        ):
            assert (await asked(page, **body))[0] == status, (page, body)
        assert (await http.get("/nobody/splits")).status_code == 404


def played(python: str, *arguments: str) -> Any:
    """What OpenEnv's own client saw."""
    ran = subprocess.run(
        [python, str(HERE / "openenv_client.py"), *arguments], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_openenvs_own_validation_passes_a_server_of_ours(openenv, guess):
    command = [str(Path(openenv).with_name("openenv")), "validate", "--url", guess.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Verdict: PASS" in ran.stdout


@pytest.mark.slow
def test_openenvs_own_client_of_tools_lists_and_calls_ours(openenv, serve_all):
    asked, tools, product, sum_, steps = played(openenv, "tools", serve_all("calculator").url)
    assert "What is" in asked
    assert (tools, product, sum_, steps) == (["calculate"], "42", "2", 2)


@pytest.mark.slow
def test_openenvs_own_client_plays_a_server_of_ours(openenv, guess):
    first, wrong, state, *refused, right, again = played(openenv, "play", guess.url)
    assert first == ["Guess my number.", None, False]
    assert wrong == ["No.", -0.125, False]
    assert state == {"episode_id": "mine", "step_count": 1, "task_id": "train-3"}
    assert all("Invalid message" in error for error in refused)
    assert right[:2] == [1.0, True]
    assert right[2]["terminated"] is True
    assert again == [False, "heldout-6"]


@pytest.fixture(scope="module")
def theirs(openenv: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an OpenEnv server of OpenEnv's own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("openenv") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([openenv, str(HERE / "openenv_server.py"), str(port)], stdout=out, stderr=out)
    began = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - began < 120
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.mark.slow
async def test_any_openenv_server_is_an_environment(theirs):
    assert await check_environment(OpenEnvEnvironment, options={"url": theirs}, tasks=2, answers=["3", "x"]) == []
    async with LocalClient(OpenEnvEnvironment, {"url": theirs, "shown": "hint"}) as client:
        env = client.episode()
        first = await env.reset(client.tasks("train")[7], seed=0)
        assert first.messages[-1].text == "Guess a number below ten."
        steps = [await env.step(Action.text(said)) for said in ("1", "7")]
        assert [(step.reward, step.terminated) for step in steps] == [(0.0, False), (1.0, True)]
        assert [step.observation.messages[0].text for step in steps] == ["No.", "Yes."]
        await env.reset(client.tasks("train")[7], seed=0)
        with pytest.raises(FailureError, match="EXECUTION_ERROR: boom"):
            await env.step(Action.text("boom"))
