"""OpenEnv's HTTP pages (0.10): `/reset`, `/step`, `/state`, `/mcp`, and its Task API.

What always holds: they play the sessions that the socket `/ws` plays, by the `session_id` that `openenv/session/create`
gave; without one a reset or a call has an episode for itself, which is closed with the answer. No task's reference is
in any answer, and what is refused or fails is a `FailureBody`, or an error of JSON-RPC at `/mcp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import Int64, to_builtins
from quintain.envs.serving.mcp import rpc_answer
from quintain.envs.serving.openenv import OpenEnvSessions
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import MAX_TASKS
from quintain.failure import Stage
from quintain.serving.app import Page, json_answer, read_body
from quintain.serving.refusals import read, refused

_SPLIT_TYPES: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class OpenEnvReset:
    """`POST /reset`."""

    seed: Int64 | None = None
    episode_id: str | None = None
    split: str = "train"
    index: Int64 | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class OpenEnvStep:
    """`POST /step`."""

    action: Mapping[str, Any]
    session_id: str


@dataclass(frozen=True, slots=True)
class TasksAsked:
    """What the Task API asks about: of `split` all, the one at `index`, or those from `start` to before `stop`."""

    split: str
    index: Int64 | None = None
    start: Int64 | None = None
    stop: Int64 | None = None


class OpenEnvPages:
    """The pages over `sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._openenv = OpenEnvSessions(sessions)
        self.socket = self._openenv.serve

    def pages(self) -> tuple[Page, ...]:
        """What to add to a server's."""
        return (
            Page("POST", "/reset", Stage.RESET, self._reset, body=OpenEnvReset),
            Page("POST", "/step", Stage.STEP, self._step, body=OpenEnvStep),
            Page("GET", "/state", Stage.STEP, self._state),
            Page("POST", "/mcp", Stage.STEP, self._mcp),
            Page("GET", "/list_environments", Stage.TASKS, self._environments),
            Page("GET", "/{env}/splits", Stage.TASKS, self._splits),
            Page("POST", "/{env}/num_tasks", Stage.TASKS, self._size, body=TasksAsked),
            Page("POST", "/{env}/tasks", Stage.TASKS, self._tasks, body=TasksAsked),
            Page("POST", "/{env}/task_range", Stage.TASKS, self._tasks, body=TasksAsked),
            Page("POST", "/{env}/task", Stage.TASKS, self._task, body=TasksAsked),
        )

    async def _reset(self, request: Request) -> Response:
        asked = read(await self._body(request) or b"{}", OpenEnvReset, Stage.RESET, lenient=True)
        if asked.session_id is not None:
            return _json(await self._openenv.find(asked.session_id).reset(to_builtins(asked)))
        session = self._openenv.unnamed(request.state.holder)
        try:
            return _json(await session.reset(to_builtins(asked)))
        finally:
            session.close()

    async def _step(self, request: Request) -> Response:
        asked = read(await self._body(request), OpenEnvStep, Stage.STEP, lenient=True)
        return _json(await self._openenv.find(asked.session_id).step(asked.action))

    async def _state(self, request: Request) -> Response:
        name = request.query_params.get("session_id")
        holder = request.state.holder
        return _json((self._openenv.unnamed(holder) if name is None else self._openenv.find(name)).state())

    async def _mcp(self, request: Request) -> Response:
        rpc = partial(self._openenv.rpc, request.state.holder)
        answer = await rpc_answer(await self._body(request), rpc)
        return Response(status_code=202) if answer is None else _json(answer)

    async def _environments(self, request: Request) -> Response:
        return _json([json.loads(await self._sessions.describe())["name"]])

    async def _splits(self, request: Request) -> Response:
        splits = (await self._about(request))["splits"]
        return _json([{"name": name, "type": name if name in _SPLIT_TYPES else "validation"} for name in splits])

    async def _size(self, request: Request) -> Response:
        about, asked = await self._about(request), await self._asked(request)
        size = about["splits"].get(asked.split, 0)
        if size is None:
            raise refused(
                f"the split {asked.split!r} is endless: ask for a task or a task_range", Stage.TASKS, status=400
            )
        return _json({"num_tasks": size or json.loads(await self._sessions.tasks(asked.split, 0, 0))["size"]})

    async def _tasks(self, request: Request) -> Response:
        about, asked = await self._about(request), await self._asked(request)
        start = asked.start or 0
        count = MAX_TASKS if asked.stop is None else max(0, asked.stop - start)
        page = json.loads(await self._sessions.tasks(asked.split, start, count))
        if asked.stop is None and (page["size"] is None or page["size"] > start + count):
            has = "is endless" if page["size"] is None else f"has {page['size']} tasks"
            message = f"the split {asked.split!r} {has}, and an answer at most {MAX_TASKS}: give a stop"
            raise refused(message, Stage.TASKS, status=400)
        return _json({"tasks": page["tasks"], "env_name": about["name"]})

    async def _task(self, request: Request) -> Response:
        await self._about(request)
        asked = await self._asked(request)
        page = json.loads(await self._sessions.tasks(asked.split, -1 if asked.index is None else asked.index, 1))
        if not page["tasks"]:
            raise refused(f"Invalid task index: {asked.split!r} has {page['size']} tasks", Stage.TASKS, status=400)
        return _json({"task": page["tasks"][0]})

    async def _about(self, request: Request) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(await self._sessions.describe())
        if request.path_params["env"].lower() != about["name"].lower():
            message = f"unknown environment {request.path_params['env'][:64]!r}: this server has {about['name']!r}"
            raise refused(message, Stage.TASKS, status=404)
        return about

    async def _asked(self, request: Request) -> TasksAsked:
        return read(await self._body(request), TasksAsked, Stage.TASKS)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._sessions.limits.body_bytes)


def _json(answer: Any) -> Response:
    return json_answer(json.dumps(answer))
