"""MCP servers as toolboxes, real ones: of the newest package, and (slow) of the 1.x line in an environment apart."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from quintain.envs import Action, LocalClient, McpTools, Message, Task, ToolEnv, ToolError, user
from quintain.failure import FailureError, FailureKind
from quintain.messages import FunctionCall, ToolCall

from .venvs import python_with

ROOT = Path(__file__).parents[2]
SERVER = str(Path(__file__).with_name("mcp_server.py"))
OLD = "mcp>=1.20,<2"
NAMES = ["add", "remember", "fail", "secret", "die", "hang"]


@pytest.fixture(params=["new", pytest.param("old", marks=pytest.mark.slow)], scope="module")
def python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == "new" else python_with("mcp-1", OLD)


Start = Callable[[], tuple[str, psutil.Process]]


@pytest.fixture
def start(python: str, tmp_path: Path) -> Iterator[Start]:
    """`start()`: a server over HTTP, its address and its process."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin() -> tuple[str, psutil.Process]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = (tmp_path / "server.log").open("wb")
        processes.append(subprocess.Popen([python, SERVER, str(port)], stdout=log, stderr=log))
        began = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return f"http://127.0.0.1:{port}/mcp", psutil.Process(processes[-1].pid)
            except OSError:
                assert processes[-1].poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() - began < 60

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(params=["stdio", "http"])
def tools(request: pytest.FixtureRequest, python: str, start: Start) -> McpTools:
    if request.param == "http":
        return McpTools(start()[0], headers={"x-test": "1"}, call_s=20)
    return McpTools([python, SERVER, "stdio"], env={"MCP_TEST_SECRET": "sesame"}, call_s=20)


def called(name: str, arguments: str = "{}") -> Action:
    return Action(Message("assistant", None, (ToolCall("c", FunctionCall(name, arguments)),)))


async def test_tools_are_listed_as_they_are_and_called(tools):
    try:
        specs = await tools.specs()
        assert [spec.function.name for spec in specs] == NAMES
        assert specs[0].function.description == "Add two numbers."
        assert specs[0].function.parameters["required"] == ["a", "b"]
        assert await tools.call("add", {"a": 2, "b": 40}) == "42"
        assert [await tools.call("remember", {"word": word}) for word in ("x", "y")] == ["x", "x y"]
        for name, arguments, kind, says in (
            ("ad", {}, "unknown_tool", "there is no tool 'ad': did you mean 'add'?"),
            ("add", {"a": "x"}, "raised", "a"),
            ("fail", {"how": "broken"}, "raised", "fail"),
        ):
            with pytest.raises(ToolError, match=says) as error:
                await tools.call(name, arguments)
            assert error.value.kind == kind
        with pytest.raises(FailureError, match="MCPError") as dead:
            await tools.call("die", {})
        assert dead.value.failure.kind is FailureKind.CRASHED
        with pytest.raises(FailureError):
            await tools.call("add", {"a": 1, "b": 1})
    finally:
        await tools.close()
        await tools.close()


class Remembering(ToolEnv):
    """Remember words, with the tools of a server."""

    server: Any = None

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task("one", (user("Remember."),))]

    def toolbox(self) -> McpTools:
        return McpTools(self.server, call_s=3, env={"MCP_TEST_SECRET": "sesame"})

    def verdict(self, history):
        return float("sesame" in history[-2].text)


def spawned() -> set[int]:
    """The servers that this process has started, by their ids."""
    return {child.pid for child in psutil.Process(os.getpid()).children() if SERVER in child.cmdline()}


async def test_every_episode_has_a_server_of_its_own_that_ends_with_it(python):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remembering, "server", [python, SERVER, "stdio"])
        before = spawned()
        async with LocalClient(Remembering) as client:
            for word in ("x", "y"):
                env = client.episode()
                first = await env.reset(client.tasks("train")[0], seed=0)
                assert [spec.function.name for spec in first.tools] == NAMES
                step = await env.step(called("remember", f'{{"word": "{word}"}}'))
                assert step.observation.messages[0].text == word
                step = await env.step(called("secret"))
                assert (await env.step(Action.text("Done."))).reward == 1.0
                assert len(spawned() - before) == 1
                await env.close()
                assert spawned() == before


@pytest.mark.parametrize(("tool", "kind"), [("die", FailureKind.CRASHED), ("hang", FailureKind.TIMEOUT)])
async def test_a_server_that_dies_or_hangs_in_a_call_is_a_failed_episode_and_leaves_nothing(python, tool, kind):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remembering, "server", [python, SERVER, "stdio"])
        before = spawned()
        async with LocalClient(Remembering) as client:
            env = client.episode()
            await env.reset(client.tasks("train")[0], seed=0)
            with pytest.raises(FailureError) as error:
                await env.step(called(tool))
            assert error.value.failure.kind is kind
            assert str(ROOT) not in error.value.failure.message
            with pytest.raises(FailureError, match="the episode has failed"):
                await env.step(Action.text("Done."))
            await env.close()
        assert spawned() == before


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (["no-such-command"], "No such file or directory: 'no-such-command'"),
        (["false"], "Connection closed"),
        (["echo", "hello"], "Connection closed"),
        (["sleep", "600"], "it lists no tools within 1 s"),
        ("http://127.0.0.1:9/mcp", "ConnectError"),
        ("nonsense", "missing an 'http://' or 'https://' protocol"),
    ],
    ids=str,
)
async def test_a_server_that_is_none_is_one_line_and_its_process_is_ended(server, says):
    tools = McpTools(server, start_s=1.0)
    with pytest.raises(FailureError, match=says) as error:
        await tools.specs()
    assert "\n" not in error.value.failure.message
    began = time.monotonic()
    await tools.close()
    assert time.monotonic() - began < 10
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]
