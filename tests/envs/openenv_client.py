"""OpenEnv's own client at a server of ours, run in an environment of its own; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from openenv.core.generic_client import GenericEnvClient


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


asyncio.run(main(sys.argv[1]))
