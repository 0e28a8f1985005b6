"""Runs in an environment of its own with Prime Intellect's `verifiers`: plays its tasks for `prime_verifiers`.

    python prime_verifiers_host.py SOCKET '{"id": "reverse-text", "config": {...}, "most": 1000}'

What always holds: it has loaded the package and the tasks when the command returns, and then listens on SOCKET until
its stdin is closed; each connection is one episode, in a process of its own, which ends with the connection; a call of
the policy's goes out as a frame of four bytes of length and then JSON, and waits for its answer. Nothing of ours is
imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from typing import Any

LENGTH = struct.Struct(">I")
HARNESS = "quintain_chat"
ENDS_S = 5.0
"""How long an episode that is not wanted any more may take to clear up."""


class EpisodeConnection:
    """One connection, of which a thread reads: an episode that blocks ends with it all the same."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._file = connection, connection.makefile("rb")
        self._calling = asyncio.Lock()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def read(self) -> dict[str, Any]:
        """The next frame. Raises EOFError at the end."""
        head = self._file.read(LENGTH.size)
        body = self._file.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else b""
        if not body:
            raise EOFError
        frame: dict[str, Any] = json.loads(body)
        return frame

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame."""
        data = json.dumps(frame).encode()
        self._connection.sendall(LENGTH.pack(len(data)) + data)

    def listen(self, episode: asyncio.Task[Any]) -> None:
        """Hand answers to the calls from now on, and end `episode` at the end of the connection."""
        loop = asyncio.get_running_loop()

        def reading() -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    loop.call_soon_threadsafe(self._answers.put_nowait, self.read())
            loop.call_soon_threadsafe(episode.cancel)
            time.sleep(ENDS_S)
            os._exit(1)

        threading.Thread(target=reading, daemon=True).start()

    async def answered(self, path: str, body: str) -> dict[str, Any]:
        """The answer to a call of the policy's; one at a time."""
        async with self._calling:
            self.send({"call": {"path": path, "body": body}})
            return await self._answers.get()


def chat_harness() -> types.ModuleType:
    """A plug-in of the package's: a chat with the task's tools, in this process."""
    from openai import APIStatusError, AsyncOpenAI
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.harnesses.null import NullHarness
    from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
    from verifiers.v1.runtimes import ProgramResult

    class ChatHarness(NullHarness):  # type: ignore[misc]
        SUPPORTS_TOOL_INTERCEPTION = False

        async def setup(self, runtime: Any) -> None:
            """There is nothing to install."""

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any
        ) -> Any:
            system, prompt = self.resolve_prompt(data)
            said = (
                [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(message_to_wire, prompt or ())
            )
            messages = [*([{"role": "system", "content": system}] if system else []), *said]
            servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            async with contextlib.AsyncExitStack() as stack:
                tools, places, clients = await connect_mcp({"mcpServers": servers}, stack)
                client = await stack.enter_async_context(AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None))
                more = {"tools": tools} if tools else {}
                while True:
                    try:
                        answer = await client.chat.completions.create(model=ctx.model, messages=messages, **more)
                    except APIStatusError:
                        if trace.stop_condition is None:
                            raise
                        break  # a limit of the environment's: what was said so far is scored
                    message = answer.choices[0].message
                    messages.append(message.model_dump(exclude_none=True))
                    for call in message.tool_calls or ():
                        name, given = call.function.name, call.function.arguments
                        try:
                            told = await call_mcp(clients, places, name, json.loads(given))
                        except (KeyError, ValueError) as error:
                            told = f"error: {error!r} is no tool, or its arguments are no JSON"
                        messages.append({"role": "tool", "tool_call_id": call.id, "name": name, "content": told})
                    if not message.tool_calls:
                        break
            return ProgramResult(exit_code=0, stdout="", stderr="")

    module = types.ModuleType(HARNESS)
    vars(module).update(ChatHarness=ChatHarness, __all__=["ChatHarness"])
    return module


def loaded(asked: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The environment, whose agents chat in this process unless its `config` says otherwise, and its tasks."""
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.utils.loaders import env_config_type, load_environment, resolve_env_config

    for name in ("aiohttp.web", "mcp", "openai.resources"):  # what an episode needs, before the first fork
        importlib.import_module(name)
    sys.modules[HARNESS] = chat_harness()
    config = {**asked["config"], "taskset": {**asked["config"].get("taskset", {}), "id": asked["id"]}}
    fields = env_config_type(asked["id"], config.get("id", "")).model_fields
    for seat in (name for name, field in fields.items() if isinstance(field.default, AgentConfig)):
        config[seat] = {"harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}} | config.get(seat, {})
    env = load_environment(resolve_env_config(config))
    return env, list(itertools.islice(env.taskset, asked["most"]))


async def played(env: Any, task: Any, channel: EpisodeConnection) -> dict[str, Any]:
    """What an episode comes to: its rewards by name, or what went wrong."""
    from aiohttp import web
    from verifiers.v1 import EvalClientConfig, ModelContext
    from verifiers.v1.types import SamplingConfig

    async def policy(request: web.Request) -> web.Response:
        answer = await channel.answered(request.path_qs, await request.text())
        return web.Response(status=answer["status"], text=answer["body"], content_type=answer["kind"])

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{page:.*}", policy)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with env.serving():
        client = EvalClientConfig(base_url=url, api_key_var="QUINTAIN_POLICY")
        episode = await env.run_episode(task, ModelContext(client=client, model="policy", sampling=SamplingConfig()))
    await runner.cleanup()
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if not episode.ok:
        return {"failure": f"{errors[-1].type}: {errors[-1].message}" if errors else "it says nothing of why"}
    if len(episode.traces) != 1:
        return {"failure": f"{len(episode.traces)} agents have played, and only one can be trained"}
    return {"rewards": {name: reward.value for name, reward in episode.traces[0].rewards.items() if reward}}


async def episode(env: Any, tasks: list[Any], connection: socket.socket) -> None:
    """What a connection asks for: the list of the tasks, or one of them played."""
    channel = EpisodeConnection(connection)
    asked = channel.read()
    if "task" not in asked:
        channel.send({"tasks": [{"name": task.data.name, "prompt": task.data.prompt_text} for task in tasks]})
        return
    playing = asyncio.ensure_future(played(env, tasks[asked["task"]], channel))
    channel.listen(playing)
    try:
        end = await playing
    except Exception as error:  # the boundary: whatever broke is the episode's failure
        end = {"failure": f"{type(error).__name__}: {error}"}
    channel.send({"end": end})


def main() -> None:
    """Load, listen, and leave a process behind that forks for each connection."""
    env, tasks = loaded(json.loads(sys.argv[2]))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(1024)
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    waited: list[Any] = [listener, 0]
    while 0 not in select.select(waited, [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            try:
                asyncio.run(episode(env, tasks, connection))
            finally:
                os._exit(0)
        connection.close()
    os.unlink(sys.argv[1])
    os._exit(0)


if __name__ == "__main__":
    main()
