"""The HTTP face of one environment: `/v1` and the pages around it, as a Starlette application.

What always holds: every answer that is no success is a `FailureBody` of the closed vocabulary, whatever
broke; no stack trace and no task's reference is in any answer; a request is read only up to the limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import to_json
from quintain.envs.serving.mcp import mcp_answer
from quintain.envs.serving.openenv import SCHEMA
from quintain.envs.serving.openenv_pages import OpenEnvPages
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import (
    MAX_TASKS,
    CreateEpisode,
    EpisodeCreated,
    EpisodeStatus,
    ForkRequest,
    Metadata,
    StepAnswer,
    StepRequest,
    TaskPage,
    schema,
)
from quintain.failure import FailureKind, Stage
from quintain.serving.app import Page, application, json_answer, metrics_page, read_body
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import read, refused
from quintain.serving.tokens import Tokens
from quintain.verifiers.service.jobs import Jobs
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.pages import VerifyPages
from quintain.verifiers.service.policy import AccessPolicy

PAGE = 100
"""Tasks in a page unless `count` says otherwise."""


class EnvApp:
    """The application around `sessions`; `tokens`, where there are some, are asked for everywhere but at `/health`."""

    def __init__(self, sessions: Sessions, metrics: Metrics, *, tokens: Tokens | None = None) -> None:
        self._sessions = sessions
        self._jobs = Jobs(AccessPolicy(), ServiceLimits(body_bytes=sessions.limits.body_bytes), metrics)
        openenv = OpenEnvPages(sessions)
        played = (
            Page("POST", "/v1/episodes/{id}/step", Stage.STEP, self._step, body=StepRequest, answer=StepAnswer),
            Page("POST", "/v1/episodes", Stage.RESET, self._create, body=CreateEpisode, answer=EpisodeCreated),
            Page("POST", "/v1/episodes/{id}/fork", Stage.RESET, self._fork, body=ForkRequest, answer=EpisodeStatus),
            Page("POST", "/v1/episodes/{id}/mcp", Stage.STEP, self._mcp),
            Page("GET", "/v1/episodes/{id}", Stage.STEP, self._status, answer=EpisodeStatus),
            Page("DELETE", "/v1/episodes/{id}", Stage.CLOSE, self._close, answer=EpisodeStatus),
            Page("GET", "/v1/tasks", Stage.TASKS, self._tasks, answer=TaskPage),
            Page("GET", "/metadata", Stage.TASKS, self._describe, answer=Metadata),
        )
        pages = (
            *played,
            *VerifyPages(self._jobs, AccessPolicy()).pages(),
            *openenv.pages(),
            Page("GET", "/schema", Stage.REQUEST, self._schema),
            metrics_page(metrics),
            Page("GET", "/health", Stage.REQUEST, self._health, open=True),
        )
        sockets = {"/ws": openenv.socket}
        self.under_way: set[asyncio.Task[None]] = set()
        self.asgi = application(
            pages, metrics, tokens or Tokens(), multiplexed=played, under_way=self.under_way, sockets=sockets
        )

    async def close(self) -> None:
        """Close the verifiers."""
        await self._jobs.close()

    async def _create(self, request: Request) -> Response:
        asked = read(await self._body(request), CreateEpisode, Stage.RESET)
        return json_answer(await self._sessions.create(asked, request.state.holder), 201)

    async def _step(self, request: Request) -> Response:
        asked = read(await self._body(request), StepRequest, Stage.STEP)
        return json_answer(await self._sessions.step(request.path_params["id"], asked))

    async def _fork(self, request: Request) -> Response:
        asked = read(await self._body(request), ForkRequest, Stage.RESET)
        forked = await self._sessions.fork(request.path_params["id"], asked, request.state.holder)
        return json_answer(to_json(forked), 201)

    async def _mcp(self, request: Request) -> Response:
        answer = await mcp_answer(self._sessions, request.path_params["id"], await self._body(request))
        return Response(status_code=202) if answer is None else json_answer(json.dumps(answer))

    async def _status(self, request: Request) -> Response:
        return json_answer(to_json(self._sessions.status(request.path_params["id"])))

    async def _close(self, request: Request) -> Response:
        return json_answer(to_json(self._sessions.close(request.path_params["id"])))

    async def _tasks(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(set(query) - {"split", "start", "count"}):
            raise refused(f"/v1/tasks has no parameter {unknown[0]!r}: split, start, count", Stage.TASKS, status=400)
        start, count = _integer(query, "start", 0), _integer(query, "count", min(PAGE, MAX_TASKS))
        return json_answer(await self._sessions.tasks(query.get("split", "train"), start, count))

    async def _describe(self, request: Request) -> Response:
        return json_answer(await self._sessions.describe())

    async def _schema(self, request: Request) -> Response:
        return json_answer(json.dumps({**schema(), **SCHEMA}))

    async def _health(self, request: Request) -> Response:
        if not self._sessions.ready:
            raise refused("no worker process is running yet", Stage.REQUEST, FailureKind.UNREACHABLE)
        return json_answer('{"status": "healthy"}')

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._sessions.limits.body_bytes)


def _integer(query: Mapping[str, Any], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.lstrip("-").isdecimal() or len(text) > 18:
        raise refused(f"{name} must be a whole number, not {text[:40]!r}", Stage.TASKS, status=400)
    return int(text)
