"""Rows for sft.yaml: episodes of `calculator` played by rule, each calling the tool and answering as it says.

python examples/sft_then_grpo/make_transcripts.py [--rows 400]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from quintain.codec import to_builtins
from quintain.envs import Action, CalculatorEnv, LocalClient, Message, Task
from quintain.messages import FunctionCall, ToolCall, assistant


async def played(client: LocalClient, task: Task) -> dict[str, Any]:
    """A conversation in which the tool is asked, and believed."""
    env = client.episode()
    first = await env.reset(task, seed=0)
    asked = task.prompt[-1].text.removeprefix("What is ").rstrip("?")
    call = ToolCall("call", FunctionCall("calculate", json.dumps({"expression": asked})))
    calling = Message("assistant", None, (call,))
    told = (await env.step(Action(calling))).observation.messages
    answer = assistant(told[-1].text)
    assert (await env.step(Action(answer))).reward == 1.0
    messages = [message.to_openai() for message in (*first.messages, calling, *told, answer)]
    return {"messages": messages, "tools": [to_builtins(tool) for tool in first.tools]}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    count = parser.parse_args().rows
    async with LocalClient(CalculatorEnv) as client:
        tasks = client.tasks("train")  # endless, and without what is held out
        rows = [await played(client, tasks[number]) for number in range(count)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name("transcripts.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
