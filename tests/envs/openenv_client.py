"""OpenEnv's own client at a server of ours, run in an environment of its own; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from openenv.core.env_server.mcp_types import CallToolAction
from openenv.core.generic_client import GenericEnvClient
from openenv.core.mcp_client import MCPToolClient


async def main(url: str) -> None:
    seen = []
    async with GenericEnvClient(base_url=url) as env:
        first = await env.reset(seed=3, episode_id="mine")
        seen.append([first.observation["messages"][0]["content"], first.reward, first.done])
        wrong = await env.step({"content": "0"})
        seen.append([wrong.observation["messages"][0]["content"][:3], wrong.reward, wrong.done])
        seen.append(await env.state())
        for action in ({"content": 5}, {"nothing": "x"}):
            try:
                await env.step(action)
            except Exception as error:
                seen.append(str(error)[:60])
        right = await env.step({"content": "5"})
        seen.append([right.reward, right.done, right.metadata])
        again = await env.reset(index=6, split="heldout")
        seen.append([again.done, (await env.state())["task_id"]])
    print(json.dumps(seen))


async def tools(url: str) -> None:
    async with MCPToolClient(base_url=url) as env:
        first = await env.reset(index=0)
        seen = [first.observation.messages[-1]["content"], [tool.name for tool in await env.list_tools()]]
        seen.append(await env.call_tool("calculate", expression="6 * 7"))
        stepped = await env.step(CallToolAction(tool_name="calculate", arguments={"expression": "1 + 1"}))
        seen.append(stepped.observation.messages[0]["content"])
        seen.append((await env.state()).step_count)
    print(json.dumps(seen))


asyncio.run({"play": main, "tools": tools}[sys.argv[1]](sys.argv[2]))
