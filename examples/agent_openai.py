"""An agent program as the policy's driver: OpenAI's SDK, a calculator to call, and a reward at the end.

    quintain rollout serve examples/quickstart.yaml
    python examples/agent_openai.py http://127.0.0.1:8200

Nothing in `solve` knows of quintain; any program that takes a base URL can stand in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
from typing import Any

import httpx
from openai import AsyncOpenAI

TOKEN = os.environ.get("QUINTAIN_ROLLOUT_TOKEN", "none")
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def call(arguments: str) -> str:
    """The result of a call of `add`, or what is wrong with it: the model may write anything."""
    try:
        given = json.loads(arguments)
        return str(int(given["a"]) + int(given["b"]))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {type(error).__name__}: {error}"


async def solve(client: AsyncOpenAI, model: str, question: str, *, calls: int = 3) -> str:
    """Ask, answer the model's calls, at most `calls` times, and return what it says."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(calls):
        answer = await client.chat.completions.create(model=model, messages=messages, tools=[ADD])
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return message.content or ""
        messages += [
            {"role": "tool", "tool_call_id": made.id, "content": call(made.function.arguments)}
            for made in message.tool_calls
            if made.type == "function"
        ]
    return ""


async def episode(server: httpx.AsyncClient, place: int) -> dict[str, Any]:
    """One session: open it, let the agent work, end it with a reward or as a failure."""
    rng = random.Random(place)
    a, b = rng.randint(1, 30), rng.randint(1, 30)
    opened = (await server.post("/sessions", json={"task": f"sum-{place}", "index": place})).raise_for_status().json()
    try:
        async with AsyncOpenAI(base_url=opened["base_url"], api_key=opened["api_key"]) as client:
            said = await solve(client, opened["model"], f"What is {a} + {b}?")
        end, body = "reward", {"reward": float(str(a + b) in re.findall(r"\d+", said)), "info": {"said": said}}
    except Exception as error:  # an agent that breaks is a failure, and never a reward of 0
        end, body = "fail", {"message": f"{type(error).__name__}: {error}"}
    status: dict[str, Any] = (await server.post(f"/sessions/{opened['id']}/{end}", json=body)).raise_for_status().json()
    return status


async def main(url: str, episodes: int) -> None:
    """Play `episodes` at once and print how each ended."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as server:
        for status in await asyncio.gather(*(episode(server, place) for place in range(episodes))):
            ended = f"reward {status['reward']:g}" if status["failure"] is None else status["failure"]["message"]
            print(f"{status['task']}: {status['turns']} turns, {status['output_tokens']} tokens, {ended}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the rollout server's address")
    parser.add_argument("-n", "--episodes", type=int, default=4)
    given = parser.parse_args()
    asyncio.run(main(given.url, given.episodes))
