"""The tools of an episode for the official MCP clients: the newest, and (slow) the 1.x line, in a place apart."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from quintain.envs import Action, McpTools, ToolError

from .venvs import python_with

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(serve_all):
    return serve_all("calculator")


async def opened(client: Any) -> tuple[Any, str]:
    env = client.episode()
    await env.reset(client.tasks("train")[0], seed=0)
    return env, f"{client.url}/v1/episodes/{env._episode}/mcp"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_lists_and_calls_the_tools_of_an_episode(server, mode):
    async with server.client() as client:
        env, url = await opened(client)
        async with Client(url, mode=mode) as mcp:
            assert mcp.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
            (tool,) = (await mcp.list_tools()).tools
            assert (tool.name, tool.input_schema["required"]) == ("calculate", ["expression"])
            said = await mcp.call_tool("calculate", {"expression": "6 * 7"})
            assert ([block.text for block in said.content], said.is_error) == (["42"], False)
            assert said.meta["quintain/step"]["reward"] == 0.0
            wrong = await mcp.call_tool("calculate", {"expression": "x"})
            assert wrong.is_error
            assert "cannot be calculated" in wrong.content[0].text
        env._turn = 2  # as many calls were made
        assert (await env.step(Action.text("0"))).terminated
        await env.close()


async def test_an_episode_elsewhere_is_a_toolbox_here(server):
    async with server.client() as client:
        _, url = await opened(client)
        tools = McpTools(url, call_s=20)
        try:
            assert [spec.function.name for spec in await tools.specs()] == ["calculate"]
            assert await tools.call("calculate", {"expression": "1 + 1"}) == "2"
            with pytest.raises(ToolError, match="a division by zero"):
                await tools.call("calculate", {"expression": "1 / 0"})
        finally:
            await tools.close()


async def test_the_docs_call_a_tool_of_an_episode(server):
    page = (HERE.parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    async with server.client() as client:
        env, _ = await opened(client)
        assert await names["call"](server.url, env._episode) == "42"


async def test_what_is_no_call_is_an_error_of_json_rpc_and_an_unknown_episode_is_none(server):
    async with server.client() as client, httpx.AsyncClient() as http:
        env, url = await opened(client)
        for body, code in (
            ("{", -32700),
            ("[]", -32600),
            ('{"jsonrpc": "2.0", "id": 1, "method": "resources/list"}', -32601),
            ('{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 5}}', -32602),
            ('{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": []}', None),
        ):
            answer = (await http.post(url, content=body)).json()
            assert answer["error"]["code"] == (code or -32602), answer
        told = await http.post(url, content='{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        assert (told.status_code, told.content) == (202, b"")
        await env.step(Action.text("0"))
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "calculate"}}
        over = (await http.post(url, json=call)).json()
        assert (over["id"], over["error"]["code"], over["error"]["message"]) == (7, -32000, "the episode has ended")
        assert (await http.post(f"{server.url}/v1/episodes/none/mcp", json=call)).status_code == 404
        assert (await http.get(url)).status_code == 405


OLD_CLIENT = """
import asyncio, json, sys
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

async def main():
    async with streamablehttp_client(sys.argv[1]) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        said = await session.call_tool("calculate", {"expression": "6 * 7"})
        print(json.dumps([[tool.name for tool in tools], said.content[0].text, said.isError]))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_client_of_the_older_line_does_so_too(server):
    python = python_with("mcp-1", "mcp>=1.20,<2")
    async with server.client() as client:
        _, url = await opened(client)
        ran = await asyncio.create_subprocess_exec(python, "-c", OLD_CLIENT, url, stdout=asyncio.subprocess.PIPE)
        out, _ = await ran.communicate()
    assert ran.returncode == 0
    assert json.loads(out) == [["calculate"], "42", False]
