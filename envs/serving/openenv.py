"""OpenEnv's wire (0.10): the sessions of a server for OpenEnv's own clients.

    GenericEnvClient(base_url=url)           # the clients of the package `openenv`, at any environment server of ours
    MCPToolClient(base_url=url)

What always holds: a connection is a session with one episode at a time, of the server's own `Sessions`, with their
slots, deadlines and leases; whatever breaks is an error of OpenEnv's closed set of codes, without a stack trace; the
episode is closed with its session. An action is an assistant message (`content`, `tool_calls`), an observation has
`messages` and `tool_specs`; `reset` takes `seed`, and `split` and `index`, which the seed chooses where none is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from quintain.codec import to_builtins
from quintain.envs.base import Action, out_of_turn
from quintain.envs.serving.mcp import FAILED, PARAMS, RpcError, mcp_result, rpc_answer
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import CreateEpisode, StepRequest
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.serving.logs import tell
from quintain.serving.refusals import Refused, read, refused

_OBSERVATION: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {name: {"type": "array", "items": {"type": "object"}} for name in ("messages", "tool_specs")},
}
SCHEMA: Final[Mapping[str, Any]] = {
    "action": {
        "type": "object",
        "properties": {"content": {"type": "string"}, "tool_calls": {"type": "array", "items": {"type": "object"}}},
    },
    "observation": _OBSERVATION,
    "reset_observation": _OBSERVATION,
    "state": {
        "type": "object",
        "properties": {
            "episode_id": {"type": "string"},
            "step_count": {"type": "integer"},
            "task_id": {"type": "string"},
        },
    },
}
"""What OpenEnv's clients look for in `/schema`, beside what is there."""


class OpenEnvSessions:
    """The sessions that OpenEnv's clients begin, and those of them that have a name and are found again by it.

    A named session that nobody uses for a lease gives its place up.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._named: dict[str, OpenEnvSession] = {}

    def find(self, name: str) -> OpenEnvSession:
        """The session called `name`, which is thereby in use. Raises Refused where there is none."""
        session = self._named.get(name)
        if session is None:
            raise refused(f"Unknown session_id: {name[:64]}", Stage.REQUEST, FailureKind.LOST)
        session.touched = time.monotonic()
        return session

    def unnamed(self, holder: str) -> OpenEnvSession:
        """A session of `holder` for one connection or request, which closes it."""
        return OpenEnvSession(self._sessions, holder)

    async def rpc(self, holder: str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a method gives `holder` over `/mcp`, in the session that it names or in one for it alone.

        Raises RpcError.
        """
        if method == "openenv/session/create":
            return {"session_id": self._create(holder)}
        name = params.get("session_id")
        if name is None:
            session = self.unnamed(holder)
            try:
                return await session.rpc(method, params)
            finally:
                session.close()
        try:
            session = self.find(str(name))
        except Refused as error:
            raise RpcError(PARAMS, error.failure.message) from None
        if method != "openenv/session/close":
            return await session.rpc(method, params)
        if session.attached:
            session.closing = True
            return {"session_id": name, "closed": False, "closing": True}
        await self._close(str(name))
        return {"session_id": name, "closed": True}

    async def serve(self, socket: WebSocket) -> None:
        """The socket `/ws`: a session of its own, or the one that `session_id` names."""
        await socket.accept()
        name = socket.query_params.get("session_id")
        try:
            session = self.find(name) if name else self.unnamed(socket.state.holder)
            if session.attached:
                raise refused(f"Session {name} already has an attached WebSocket", Stage.REQUEST)
        except Refused as error:
            await socket.send_text(json.dumps(_error("SESSION_ERROR", error.failure.message)))
            await socket.close()
            return
        session.attached = True
        try:
            while (said := await socket.receive())["type"] != "websocket.disconnect":
                if (answer := await session.answer(said.get("text") or "")) is None:
                    await socket.close()
                    break
                session.touched = time.monotonic()
                code = (answer["data"] or {}).get("code", answer["type"])
                tell("request", route="WS /ws", id=name, holder=session.holder, status=code)
                await socket.send_text(json.dumps(answer))
        except WebSocketDisconnect:
            pass  # while it was answered
        finally:
            session.attached = False
            if name not in self._named:  # or gave its place up
                session.close()
            elif session.closing:
                await self._close(name)

    def _create(self, holder: str) -> str:
        limits, now = self._sessions.limits, time.monotonic()
        for name, session in list(self._named.items()):
            if not session.alone.locked() and now - session.touched >= limits.lease_s:
                self._named.pop(name).close()
        mine, most = sum(session.holder == holder for session in self._named.values()), limits.max_episodes
        if len(self._named) >= most or mine >= (limits.token_episodes or most):
            counts = {"active_sessions": len(self._named), "max_sessions": most}
            raise RpcError(FAILED, f"all {most} sessions are taken, or all that one token may have", **counts)
        name = uuid.uuid4().hex
        self._named[name] = session = self.unnamed(holder)
        session.touched = now
        return name

    async def _close(self, name: str) -> None:
        session = self._named.pop(name, None)
        if session is not None:
            async with session.alone:
                session.close()


class OpenEnvSession:
    """One session: an episode at a time, of which one thing is asked at a time."""

    def __init__(self, sessions: Sessions, holder: str) -> None:
        self._sessions, self.holder = sessions, holder
        self._episode: str | None = None
        self._begun: dict[str, Any] = {"episode_id": None}
        self.alone = asyncio.Lock()
        self.attached = self.closing = False
        self.touched = 0.0

    def state(self) -> dict[str, Any]:
        """OpenEnv's state of the episode."""
        turn = 0 if self._episode is None else self._sessions.status(self._episode).turn
        return {**self._begun, "step_count": turn}

    async def rpc(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a method of MCP gives; an episode begins by itself where there was no reset. Raises RpcError."""
        try:
            async with self.alone:
                if method.startswith("tools/") and self._episode is None:
                    await self._reset({})
                result = await mcp_result(self._sessions, self._episode or "", method, params)
        except FailureError as error:
            data = self._failed(error)["data"]
            raise RpcError(FAILED, data.pop("message"), **data) from None
        if method == "tools/call":  # what OpenEnv's client gives to its caller
            result["data"] = "\n\n".join(part["text"] for part in result["content"])
        return result

    async def answer(self, text: str) -> dict[str, Any] | None:
        """What is answered to a message; None where it says that this is the end."""
        most = self._sessions.limits.body_bytes
        if len(text.encode()) > most:
            return self._failed(refused(f"a message has at most {most} bytes", Stage.REQUEST, FailureKind.TOO_LONG))
        try:
            said = json.loads(text)
        except ValueError as error:
            return _error("INVALID_JSON", f"Invalid JSON: {error}")
        kind, data = (said.get("type", ""), said.get("data") or {}) if isinstance(said, dict) else ("", {})
        if kind == "close":
            return None
        if kind not in ("reset", "step", "state", "mcp") or not isinstance(data, dict):
            return _error("UNKNOWN_TYPE", f"Unknown message type: {kind}")
        try:
            if kind == "state":
                return {"type": "state", "data": self.state()}
            if kind == "mcp":
                return {"type": "mcp", "data": await rpc_answer(json.dumps(data), self.rpc)}
            return {"type": "observation", "data": await (self.reset(data) if kind == "reset" else self.step(data))}
        except FailureError as error:
            return self._failed(error)

    def close(self) -> None:
        """Close the episode, if there is one."""
        episode, self._episode = self._episode, None
        if episode is not None:
            with contextlib.suppress(FailureError):  # it expired: nothing is left to close
                self._sessions.close(episode)

    async def reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode, instead of the one that there was. Raises FailureError."""
        async with self.alone:
            return await self._reset(data)

    async def step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Play an action. Raises FailureError."""
        async with self.alone:
            return await self._step(data)

    async def _reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.close()
        split, seed, index = data.get("split", "train"), data.get("seed"), data.get("index")
        size = json.loads(await self._sessions.tasks(str(split), 0, 0))["size"]
        drawn = seed if isinstance(seed, int) else 0
        index = index if index is not None else drawn % size if size else drawn
        asked = json.dumps({"split": split, "index": index, "seed": seed}).encode()
        try:
            opened = json.loads(await self._sessions.create(read(asked, CreateEpisode, Stage.RESET), self.holder))
        except FailureError as error:
            if error.failure.kind not in (FailureKind.CRASHED, FailureKind.INVALID):
                raise
            raise _FactoryError(error.failure, json.loads(await self._sessions.describe())["name"]) from error
        self._episode = opened["episode_id"]
        named = data.get("episode_id") or self._episode
        self._begun = {"episode_id": named, "task_id": opened["task_id"]}
        return _observed(opened["observation"], {}, None, done=False)

    async def _step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if self._episode is None:
            raise out_of_turn(begun=False)
        turn = self._sessions.status(self._episode).turn
        if data.get("type") == "call_tool":  # which is how MCPToolClient steps
            name, arguments = str(data.get("tool_name")), data.get("arguments") or {}
            asked = StepRequest(turn, Action.call(name, arguments, id=f"call{turn:05d}"))
        else:
            spoken = {"role": "assistant", **{name: value for name, value in data.items() if name != "metadata"}}
            asked = read(json.dumps({"turn": turn, "action": {"message": spoken}}).encode(), StepRequest, Stage.STEP)
        said = json.loads(await self._sessions.step(self._episode, asked))
        ended = {"terminated": said["terminated"], "truncated": said["truncated"]}
        return _observed(said["observation"], said["info"] | ended, said["reward"], done=any(ended.values()))

    def _failed(self, error: FailureError) -> dict[str, Any]:
        failure = error.failure
        if failure.kind is FailureKind.OVERLOADED:
            counts = {"active_sessions": self._sessions.live, "max_sessions": self._sessions.limits.max_episodes}
            return _error("CAPACITY_REACHED", failure.message, **counts)
        if isinstance(error, _FactoryError):
            return _error("FACTORY_ERROR", failure.message, factory_name=error.factory, failure=to_builtins(failure))
        if isinstance(error, Refused) and error.status == 400:
            return _error("VALIDATION_ERROR", "Invalid message", errors=[{"msg": failure.message}])
        return _error("EXECUTION_ERROR", failure.message, failure=to_builtins(failure))


class _FactoryError(FailureError):
    """The environment called `factory` could not be made, or not be reset."""

    def __init__(self, failure: Failure, factory: str) -> None:
        super().__init__(failure)
        self.factory = factory


def _observed(
    observation: Mapping[str, Any], info: Mapping[str, Any], reward: float | None, *, done: bool
) -> dict[str, Any]:
    told = {**observation.get("info", {}), **info}
    shown = {"messages": observation["messages"], "tool_specs": observation["tools"], "metadata": told}
    return {"observation": shown, "reward": reward, "done": done, "metadata": told}


def _error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code, **more}}
