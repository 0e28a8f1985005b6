"""The tools of one episode for MCP's clients: `/v1/episodes/{id}/mcp`, streamable HTTP whose every answer is JSON.

What always holds: a call is a turn of the episode, with its deadline, lease and end, and its reward is in the
result's `_meta`; the newest protocol (2026-07-28, without sessions) and those that say `initialize` first are
answered alike; what is no call of an environment's is an error of JSON-RPC. A turn that is no call (the final answer)
is played with `step`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from quintain import __version__
from quintain.envs.base import Action
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import StepRequest
from quintain.failure import FailureError

NEWEST: Final = "2026-07-28"
OLDER: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""The protocols that begin with `initialize`."""
META: Final = "quintain/step"
_CACHE: Final = {"ttlMs": 0, "cacheScope": "private"}
_PARSE, _REQUEST, _METHOD, PARAMS, FAILED = -32700, -32600, -32601, -32602, -32000


class RpcError(Exception):
    """An error of JSON-RPC, with what it carries."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, **({"data": data} if data else {})}


async def mcp_answer(sessions: Sessions, episode: str, body: bytes) -> dict[str, Any] | None:
    """The answer to a message about `episode`; None to a notification. Raises FailureError where there is none."""
    sessions.status(episode)
    return await rpc_answer(body, lambda method, params: mcp_result(sessions, episode, method, params))


async def rpc_answer(
    body: bytes | str, handle: Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
) -> dict[str, Any] | None:
    """What JSON-RPC answers to a message, where `handle` gives a method's result; None to a notification."""
    asked: Any = None
    try:
        try:
            asked = json.loads(body)
        except ValueError as error:
            raise RpcError(_PARSE, f"no JSON: {error}") from None
        if not isinstance(asked, dict) or not isinstance(asked.get("method"), str):
            raise RpcError(_REQUEST, "a message is an object with a method")
        params = asked.get("params") or {}
        if not isinstance(params, dict):
            raise RpcError(PARAMS, "params are an object")
        if "id" not in asked:
            return None
        result = await handle(asked["method"], params)
    except RpcError as error:
        return _rpc(asked, error=error.error)
    except FailureError as error:
        return _rpc(asked, error={"code": FAILED, "message": error.failure.message})
    return _rpc(asked, result={"resultType": "complete", **result})


async def mcp_result(sessions: Sessions, episode: str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a method of MCP gives for `episode`. Raises RpcError, and FailureError for what the episode refuses."""
    about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "quintain", "version": __version__}}
    if method == "initialize":
        wanted = params.get("protocolVersion")
        return {**about, "protocolVersion": wanted if wanted in OLDER else OLDER[0]}
    if method == "server/discover":
        return {**about, **_CACHE, "supportedVersions": [NEWEST]}
    if method == "ping":
        return {}
    if method == "tools/list":
        return {**_CACHE, "tools": [_tool(spec["function"]) for spec in sessions.tools(episode)]}
    if method == "tools/call":
        return await _called(sessions, episode, params)
    known = "initialize, server/discover, ping, tools/list, tools/call"
    raise RpcError(_METHOD, f"there is no method {method[:80]!r}: {known}")


async def _called(sessions: Sessions, episode: str, params: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = params.get("name"), params.get("arguments") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RpcError(PARAMS, "a call has a name, and arguments that are an object")
    turn = sessions.status(episode).turn
    action = Action.call(name, arguments, id=f"call{turn:05d}")
    said = json.loads(await sessions.step(episode, StepRequest(turn, action)))
    content = [{"type": "text", "text": message["content"] or ""} for message in said["observation"]["messages"]]
    step = {name: said[name] for name in ("reward", "terminated", "truncated", "info")}
    return {"content": content, "isError": bool(said["info"].get("errors")), "_meta": {META: step}}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", **function["parameters"]}
    return {"name": function["name"], "description": function["description"], "inputSchema": schema}


def _rpc(asked: Any, **said: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked.get("id") if isinstance(asked, dict) else None, **said}
