"""OpenEnv's servers (0.10) as environments of ours.

    OpenEnvEnvironment(url="http://127.0.0.1:8000")          # quintain.envs.openenv:OpenEnvEnvironment

What always holds: an episode is a session of its own on the server; a server that is not there, is full or breaks is a
failure, and an action that the server says is none is answered with what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from quintain.calling.caller import Caller
from quintain.calling.retry import RetryPolicy
from quintain.envs.base import Action, Environment, Observation, Step
from quintain.failure import FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.messages import Message, ToolSpec, system, user
from quintain.task import EndlessTasks, Task, TaskSource

HELDOUT: Final = 100
HELDOUT_FROM: Final = 1 << 30
"""The first seed of the split "heldout"; "train" stays below."""
_WRONG: Final = {"no_action": 1}


class OpenEnvEnvironment(Environment):
    """Any OpenEnv server's environment: tasks are seeds, rewards its own; an action is a JSON object of its schema.

    `field`, where given, is the field of an action that takes what is said as it is; by default that is the only text
    field that the schema demands. `shown` is the field of its observations that is shown, else all of them.
    """

    splits = ("train", "heldout")

    def __init__(self, *, url: str, field: str | None = None, shown: str | None = None) -> None:
        self._url, self._field, self._shown = url.rstrip("/"), field, shown
        self._socket: Any = None

    @classmethod
    def tasks(cls, split: str, *, url: str) -> TaskSource:  # type: ignore[override]  # there is no server without one
        """The seeds of `split`."""
        if split == "heldout":
            return [Task(f"seed-{seed}", seed=seed) for seed in range(HELDOUT_FROM, HELDOUT_FROM + HELDOUT)]
        return EndlessTasks(lambda index: Task(f"seed-{index}", seed=index))

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin the episode of the task's seed; `task.info` are further arguments of the server's `reset`."""
        from websockets.asyncio.client import connect

        await self.close()
        try:
            schema = await self._schema()
            self._socket = await connect(self._url.replace("http", "ws", 1) + "/ws", max_size=None, proxy=None)
        except OSError as error:
            raise self._failure(FailureKind.UNREACHABLE, Stage.RESET, str(error)) from error
        chosen = seed if task.seed is None else task.seed
        said = await self._asked({"type": "reset", "data": {"seed": chosen, **task.info}}, Stage.RESET)
        about = () if self._field else (system(f"An action is a JSON object of this schema: {json.dumps(schema)}"),)
        told = self._told(said)
        return Observation((*about, *told.messages), told.tools)

    async def step(self, action: Action) -> Step:
        """Play an action; one that is none is answered with what is wrong."""
        try:
            data = json.loads(action.content) if self._field is None else {self._field: action.content}
        except ValueError:
            data = None
        if not isinstance(data, dict):
            return Step(Observation((user("That is no action: it must be a JSON object."),)), 0.0, False, info=_WRONG)
        try:
            said = await self._asked({"type": "step", "data": data}, Stage.STEP)
        except _NoAction as error:
            return Step(Observation((user(f"That is no action: {error}"),)), 0.0, False, info=_WRONG)
        truncated = bool(said.get("done") and (said.get("metadata") or {}).get("truncated"))
        return Step(self._told(said), said.get("reward") or 0.0, bool(said.get("done")) and not truncated, truncated)

    async def close(self) -> None:
        """Close the connection, and with it the session."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def _schema(self) -> Mapping[str, Any]:
        caller = Caller(self._url, None, server="OpenEnv server", policy=RetryPolicy(timeout_s=30.0, patience_s=5.0))
        try:
            schema: dict[str, Any] = json.loads(await caller.call("GET", "/schema", Stage.RESET))["action"]
        except (ValueError, KeyError) as error:
            raise self._failure(FailureKind.INVALID, Stage.RESET, f"no schema of actions: {error!r}") from error
        finally:
            await caller.aclose()
        texts = [name for name in schema.get("required", ()) if schema["properties"][name].get("type") == "string"]
        if self._field is None and len(texts) == 1 == len(schema["required"]):
            self._field = texts[0]
        return schema

    async def _asked(self, message: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        if self._socket is None:
            raise self._failure(FailureKind.REJECTED, stage, "a step before the first reset: reset first")
        try:
            await self._socket.send(json.dumps(message))
            answer = json.loads(await self._socket.recv())
        except (ConnectionClosed, ValueError) as error:
            raise self._failure(FailureKind.CRASHED, stage, str(error)) from error
        data: dict[str, Any] = answer["data"]
        if answer["type"] != "error":
            return data
        if data["code"] == "VALIDATION_ERROR" and stage is Stage.STEP:
            raise _NoAction(
                one_line("; ".join(str(e.get("msg", e)) for e in data.get("errors", ())) or data["message"])
            )
        full = data["code"] == "CAPACITY_REACHED"
        kind = FailureKind.OVERLOADED if full else FailureKind.CRASHED
        raise self._failure(kind, stage, f"{data['code']}: {data['message']}")

    def _told(self, said: Mapping[str, Any]) -> Observation:
        """What is shown: messages of a server of ours, else the observation's fields."""
        observation = {name: value for name, value in said["observation"].items() if name != "metadata"}
        if set(observation) == {"messages", "tool_specs"}:
            from quintain.codec import from_json

            messages = tuple(from_json(json.dumps(entry), Message) for entry in observation["messages"])
            return Observation(messages, tuple(from_json(json.dumps(t), ToolSpec) for t in observation["tool_specs"]))
        shown = observation if self._shown is None else observation.get(self._shown)
        return Observation((user(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)),))

    def _failure(self, kind: FailureKind, stage: Stage, message: str) -> FailureError:
        return FailureError.of(kind, stage, f"the OpenEnv server at {self._url}: {message}")


class _NoAction(QuintainError):
    """The server says that an action is none."""
