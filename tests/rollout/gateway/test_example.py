"""The example agent and the one in docs/agents.md, as a user runs them."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

from quintain.rollout.gateway import OpenSession, conversations
from quintain.trajectory import Trajectory, to_segments

from .stage import scripted, staged

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "agent_openai.py"
DOCS = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")


def adds(last: str) -> str:
    """Calls `add` for a question, and says its result."""
    if "<tool_response>" in last:
        return "The sum is " + last.removeprefix("u<tool_response>").removesuffix("</tool_response>")
    a, b = re.findall(r"\d+", last)
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


async def test_the_example_agent_earns_its_rewards() -> None:
    async with staged(scripted(adds)) as stage:
        command = [str(EXAMPLE), stage.url, "--episodes", "3"]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0
        lines = out.decode().splitlines()
        trajectories: list[Trajectory] = [await stage.taken() for _ in lines]
    assert [re.sub(r"\d+ tokens", "N tokens", line) for line in lines] == [
        f"sum-{place}: 2 turns, N tokens, reward 1" for place in range(3)
    ]
    assert sorted(trajectory.task for trajectory in trajectories) == ["sum-0", "sum-1", "sum-2"]
    assert [len(to_segments(trajectory)) for trajectory in trajectories] == [1, 1, 1]


async def test_the_agent_in_the_docs_earns_its_reward() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "import httpx" in block)
    async with staged(scripted("5, I think")) as stage:
        await asyncio.to_thread(exec, code.replace("http://127.0.0.1:8200", stage.url), {})
        trajectory = await stage.taken()
    assert (trajectory.task, trajectory.reward) == ("sum-1", 1.0)


async def test_the_docs_ask_in_the_other_dialects_too() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "from anthropic" in block)
    page: dict[str, Any] = {}
    exec(code, page)
    async with staged(scripted(lambda last: f"to {last[1:]}")) as stage:
        opened = (await stage.http.post("/sessions", json={})).json()
        assert await asyncio.to_thread(page["ask"], opened, "you") == ("to you", "to you")


def test_every_reason_to_fork_and_every_field_of_a_session_is_in_the_docs() -> None:
    reasons = {value for name, value in vars(conversations).items() if name.isupper() and isinstance(value, str)}
    assert len(reasons) == 5
    assert {word for word in {*reasons, *OpenSession.__dataclass_fields__} if f"`{word}`" not in DOCS} == set()
