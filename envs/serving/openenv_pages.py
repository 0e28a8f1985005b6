"""OpenEnv's HTTP pages (0.10): `/reset`, `/step`, `/state`, `/mcp`, and its Task API.

What always holds: they play the sessions that the socket `/ws` plays, by the `session_id` that `openenv/session/create`
gave; without one a reset or a call has an episode for itself, which is closed with the answer. No task's reference is
in any answer, and what is refused or fails is a `FailureBody`, or an error of JSON-RPC at `/mcp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import Int64, to_builtins
from quintain.envs.serving.mcp import rpc_answer
from quintain.envs.serving.openenv import OpenEnvSessions
from quintain.envs.serving.sessions import Sessions
from quintain.failure import Stage
from quintain.serving.app import Page, json_answer, read_body
from quintain.serving.refusals import read


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
        )

    async def _reset(self, request: Request) -> Response:
        asked = read(await self._body(request) or b"{}", OpenEnvReset, Stage.RESET, lenient=True)
        if asked.session_id is not None:
            return _json(await self._openenv.find(asked.session_id).reset(to_builtins(asked)))
        session = self._openenv.unnamed()
        try:
            return _json(await session.reset(to_builtins(asked)))
        finally:
            session.close()

    async def _step(self, request: Request) -> Response:
        asked = read(await self._body(request), OpenEnvStep, Stage.STEP, lenient=True)
        return _json(await self._openenv.find(asked.session_id).step(asked.action))

    async def _state(self, request: Request) -> Response:
        name = request.query_params.get("session_id")
        return _json((self._openenv.unnamed() if name is None else self._openenv.find(name)).state())

    async def _mcp(self, request: Request) -> Response:
        answer = await rpc_answer(await self._body(request), self._openenv.rpc)
        return Response(status_code=202) if answer is None else _json(answer)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._sessions.limits.body_bytes)


def _json(answer: Any) -> Response:
    return json_answer(json.dumps(answer))
