"""OpenEnv's wire (0.10): the sessions of a server for OpenEnv's own clients.

    GenericEnvClient(base_url=url)           # the client of the package `openenv`, at any environment server of ours

What always holds: a connection is a session with one episode at a time, of the server's own `Sessions`, with their
slots, deadlines and leases; whatever breaks is an error of OpenEnv's closed set of codes, without a stack trace; the
episode is closed with its connection. An action is an assistant message (`content`, `tool_calls`), an observation has
`messages` and `tools`; `reset` takes `seed`, and `split` and `index`, which the seed chooses where it is not given.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from quintain.codec import to_builtins
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import CreateEpisode, StepRequest
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.serving.refusals import Refused, read

SCHEMA: Final[Mapping[str, Any]] = {
    "action": {
        "type": "object",
        "properties": {"content": {"type": "string"}, "tool_calls": {"type": "array", "items": {"type": "object"}}},
    },
    "observation": {
        "type": "object",
        "properties": {name: {"type": "array", "items": {"type": "object"}} for name in ("messages", "tools")},
    },
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


def openenv_socket(sessions: Sessions) -> Callable[[WebSocket], Awaitable[None]]:
    """The socket `/ws`, which plays in `sessions`."""

    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        playing = _Playing(sessions)
        try:
            while (answer := await playing.answer(await socket.receive_text())) is not None:
                await socket.send_text(json.dumps(answer))
            await socket.close()
        except WebSocketDisconnect:
            pass
        finally:
            playing.close()

    return serve


class _Playing:
    """One connection's episode."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._episode: str | None = None
        self._state: dict[str, Any] = {"episode_id": None, "step_count": 0}

    async def answer(self, text: str) -> dict[str, Any] | None:
        """What is answered to a message; None where it says that this is the end."""
        try:
            said = json.loads(text)
        except ValueError as error:
            return _error("INVALID_JSON", f"Invalid JSON: {error}")
        kind, data = (said.get("type", ""), said.get("data") or {}) if isinstance(said, dict) else ("", {})
        if kind == "close":
            return None
        if kind == "state":
            return {"type": "state", "data": self._state}
        if kind not in ("reset", "step") or not isinstance(data, dict):
            return _error("UNKNOWN_TYPE", f"Unknown message type: {kind}")
        try:
            return {"type": "observation", "data": await (self._reset(data) if kind == "reset" else self._step(data))}
        except FailureError as error:
            return self._failed(error)

    def close(self) -> None:
        """Close the episode, if there is one."""
        episode, self._episode = self._episode, None
        if episode is not None:
            with contextlib.suppress(FailureError):  # it expired: nothing is left to close
                self._sessions.close(episode)

    async def _reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.close()
        split, seed = data.get("split", "train"), data.get("seed")
        size = json.loads(await self._sessions.tasks(str(split), 0, 0))["size"]
        drawn = seed if isinstance(seed, int) else 0
        index = data.get("index", drawn % size if size else drawn)
        asked = json.dumps({"split": split, "index": index, "seed": seed}).encode()
        opened = json.loads(await self._sessions.create(read(asked, CreateEpisode, Stage.RESET)))
        self._episode = opened["episode_id"]
        named = data.get("episode_id") or self._episode
        self._state = {"episode_id": named, "step_count": 0, "task_id": opened["task_id"]}
        return _observed(opened["observation"], {}, None, done=False)

    async def _step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if self._episode is None:
            message = "a step before the first reset: reset first"
            raise FailureError(Failure.of(FailureKind.REJECTED, Stage.STEP, message))
        spoken = {"role": "assistant", **{name: value for name, value in data.items() if name != "metadata"}}
        asked = json.dumps({"turn": self._state["step_count"], "action": {"message": spoken}}).encode()
        said = json.loads(await self._sessions.step(self._episode, read(asked, StepRequest, Stage.STEP)))
        self._state["step_count"] = said["turn"]
        ended = {"terminated": said["terminated"], "truncated": said["truncated"]}
        return _observed(said["observation"], said["info"] | ended, said["reward"], done=any(ended.values()))

    def _failed(self, error: FailureError) -> dict[str, Any]:
        failure = error.failure
        if failure.kind is FailureKind.OVERLOADED:
            counts = {"active_sessions": self._sessions.live, "max_sessions": self._sessions.limits.max_episodes}
            return _error("CAPACITY_REACHED", failure.message, **counts)
        if isinstance(error, Refused) and error.status == 400:
            return _error("VALIDATION_ERROR", "Invalid message", errors=[{"msg": failure.message}])
        return _error("EXECUTION_ERROR", failure.message, failure=to_builtins(failure))


def _observed(
    observation: Mapping[str, Any], info: Mapping[str, Any], reward: float | None, *, done: bool
) -> dict[str, Any]:
    told = {**observation.get("info", {}), **info}
    shown = {"messages": observation["messages"], "tools": observation["tools"], "metadata": told}
    return {"observation": shown, "reward": reward, "done": done, "metadata": told}


def _error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code, **more}}
