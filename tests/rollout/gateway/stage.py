"""A stage for the gateway's tests: an engine that says what a script says, and the gateway on a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import httpx
import openai
from starlette.applications import Starlette

from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Engine, Sampling
from quintain.rollout.gateway import Gateway, GatewayLimits, Outbox
from quintain.rollout.gateway.routes import gateway_routes
from quintain.serving.run import quiet_server
from quintain.trajectory import Trajectory

from ...fake_engine import FakeEngine

END = 0


class ByteTokenizer:
    """Characters are tokens; 0 ends a turn. Its template knows nothing of tools."""

    chat_template = "roles"
    name_or_path = "bytes"
    eos_token_id = END
    all_special_ids = (END,)
    added_tokens_decoder: ClassVar[dict[int, str]] = {END: chr(END)}

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        text = "".join(f"{m['role'][0]}{m['content']}{chr(END)}" for m in messages)
        return text + ("a" if options["add_generation_prompt"] else "")

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(letter) % 128 for letter in text]

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(i) for i in ids)


class ToolTokenizer(ByteTokenizer):
    """Its template shows tools, and calls with their arguments as objects."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        shown = [
            {**m, "content": m["content"] + "".join(_call(call) for call in m.get("tool_calls", ()))} for m in messages
        ]
        names = ",".join(tool["function"]["name"] for tool in options.get("tools") or ())
        return (f"T{names}{chr(END)}" if names else "") + super().apply_chat_template(shown, **options)


def _call(call: dict[str, Any]) -> str:
    assert isinstance(call["function"]["arguments"], dict)
    return f"<tool_call>{json.dumps(call['function'])}</tool_call>"


CHAT = TemplateChat(ByteTokenizer())
TOOL_CHAT = TemplateChat(ToolTokenizer())

Reply = Callable[[str], str]
"""(the last message of the prompt, with its role's letter) -> what to say."""


def says(reply: Reply | str, *, ends: bool = True) -> Callable[[Any, Sampling], Sequence[int]]:
    """A policy for `FakeEngine`."""

    def policy(prompt: Any, sampling: Sampling) -> list[int]:
        *_, last, _ = "".join(chr(i) for i in prompt).split(chr(END))
        text = reply if isinstance(reply, str) else reply(last)
        return [ord(letter) for letter in text] + ([END] if ends else [])

    return policy


def scripted(reply: Reply | str, **options: Any) -> FakeEngine:
    """An engine that says what `reply` says."""
    return FakeEngine(says(reply), words=128, **options)


class Stage:
    """A gateway on a real socket, and what it handed over."""

    def __init__(self, gateway: Gateway, outbox: Outbox, url: str) -> None:
        self.gateway, self.outbox, self.url = gateway, outbox, url
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=60)
        self._clients: list[openai.AsyncOpenAI] = []

    async def open(self, **asked: Any) -> tuple[str, openai.AsyncOpenAI]:
        """A session's id, and OpenAI's own client for it."""
        opened = (await self.http.post("/sessions", json=asked)).raise_for_status().json()
        client = openai.AsyncOpenAI(base_url=opened["base_url"], api_key=opened["api_key"], max_retries=0, timeout=60)
        self._clients.append(client)
        return opened["id"], client

    async def close(self) -> None:
        """Close every connection."""
        await self.http.aclose()
        for client in self._clients:
            await client.close()

    async def reward(self, session: str, reward: float = 1.0, **more: Any) -> Trajectory:
        """End a session; what was handed over."""
        (await self.http.post(f"/sessions/{session}/reward", json={"reward": reward, **more})).raise_for_status()
        return await self.taken()

    async def taken(self) -> Trajectory:
        """The next trajectory that is handed over."""
        async with asyncio.timeout(60):
            async for trajectory in self.outbox:
                return trajectory
        raise AssertionError("the outbox has no end")


@asynccontextmanager
async def staged(
    engine: Engine,
    *,
    chat: TemplateChat = CHAT,
    limits: GatewayLimits | None = None,
    sampling: Sampling | None = None,
    **options: Any,
) -> AsyncIterator[Stage]:
    """A gateway over `engine` on a real socket, in the loop of the test."""
    outbox = Outbox()
    options = {"on_finished": outbox, **options}
    gateway = Gateway(engine, chat, sampling=sampling or Sampling(256), limits=limits, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    ready = asyncio.Event()
    server = quiet_server(Starlette(routes=gateway_routes(gateway)), ready.set, grace_s=1)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await ready.wait()
    stage = Stage(gateway, outbox, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        yield stage
    finally:
        await stage.close()
        await gateway.close()
        await engine.close()
        server.should_exit = True
        await serving


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "the sum of two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def calculates(last: str) -> str:
    """Asked anything, it calls `add`; told a result, it says it."""
    if last.startswith("u<tool_response>") or last.startswith("t"):
        return f"It is {last.removeprefix('u').removeprefix('t')}."
    return 'Let me see. <tool_call>{"name": "add", "arguments": {"b": 3, "a": 2}}</tool_call>'
