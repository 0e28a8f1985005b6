"""The HTTP face of one environment: `/v1` and the pages around it, as a Starlette application.

What always holds: every answer that is no success is a `FailureBody` of the closed vocabulary, whatever
broke; no stack trace and no task's reference is in any answer; a request is read only up to the limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
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
from quintain.serving.app import Page, PageRequest, WholePage, application, json_answer, metrics_page
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import read, refused
from quintain.serving.tokens import Tokens
from quintain.serving.websocket import PageAnswer
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

        def page(
            method: str, path: str, stage: Stage, answered: Callable[[PageRequest], Any], *kinds: type | None
        ) -> Page:
            body, answer = kinds
            return Page(method, path, stage, WholePage(answered, sessions.limits.body_bytes), body=body, answer=answer)

        pages = (
            page("POST", "/v1/episodes/{id}/step", Stage.STEP, self._step, StepRequest, StepAnswer),
            page("POST", "/v1/episodes", Stage.RESET, self._create, CreateEpisode, EpisodeCreated),
            page("POST", "/v1/episodes/{id}/fork", Stage.RESET, self._fork, ForkRequest, EpisodeStatus),
            page("POST", "/v1/episodes/{id}/mcp", Stage.STEP, self._mcp, None, None),
            page("GET", "/v1/episodes/{id}", Stage.STEP, self._status, None, EpisodeStatus),
            page("DELETE", "/v1/episodes/{id}", Stage.CLOSE, self._close, None, EpisodeStatus),
            page("GET", "/v1/tasks", Stage.TASKS, self._tasks, None, TaskPage),
            page("GET", "/metadata", Stage.TASKS, self._describe, None, Metadata),
            *VerifyPages(self._jobs, AccessPolicy()).pages(),
            *openenv.pages(),
            Page("GET", "/schema", Stage.REQUEST, self._schema),
            metrics_page(metrics),
            Page("GET", "/health", Stage.REQUEST, self._health, open=True),
        )
        sockets = {"/ws": openenv.socket}
        self.under_way: set[asyncio.Future[Any]] = set()
        self.asgi = application(pages, metrics, tokens or Tokens(), under_way=self.under_way, sockets=sockets)

    async def close(self) -> None:
        """Close the verifiers."""
        await self._jobs.close()

    async def _create(self, asked: PageRequest) -> PageAnswer:
        request = read(asked.body, CreateEpisode, Stage.RESET)
        return PageAnswer(await self._sessions.create(request, asked.holder), 201)

    def _step(self, asked: PageRequest) -> asyncio.Future[str]:
        return self._sessions.step(asked.path["id"], read(asked.body, StepRequest, Stage.STEP))

    async def _fork(self, asked: PageRequest) -> PageAnswer:
        request = read(asked.body, ForkRequest, Stage.RESET)
        return PageAnswer(to_json(await self._sessions.fork(asked.path["id"], request, asked.holder)), 201)

    async def _mcp(self, asked: PageRequest) -> PageAnswer:
        answer = await mcp_answer(self._sessions, asked.path["id"], asked.body)
        return PageAnswer("", 202) if answer is None else PageAnswer(json.dumps(answer))

    def _status(self, asked: PageRequest) -> str:
        return to_json(self._sessions.status(asked.path["id"]))

    def _close(self, asked: PageRequest) -> str:
        return to_json(self._sessions.close(asked.path["id"]))

    async def _tasks(self, asked: PageRequest) -> str:
        query = asked.query
        if unknown := sorted(set(query) - {"split", "start", "count"}):
            raise refused(f"/v1/tasks has no parameter {unknown[0]!r}: split, start, count", Stage.TASKS, status=400)
        start, count = _integer(query, "start", 0), _integer(query, "count", min(PAGE, MAX_TASKS))
        return await self._sessions.tasks(query.get("split", "train"), start, count)

    async def _describe(self, asked: PageRequest) -> str:
        return await self._sessions.describe()

    async def _schema(self, request: Request) -> Response:
        return json_answer(json.dumps({**schema(), **SCHEMA}))

    async def _health(self, request: Request) -> Response:
        if not self._sessions.ready:
            raise refused("no worker process is running yet", Stage.REQUEST, FailureKind.UNREACHABLE)
        return json_answer('{"status": "healthy"}')


def _integer(query: Mapping[str, Any], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.lstrip("-").isdecimal() or len(text) > 18:
        raise refused(f"{name} must be a whole number, not {text[:40]!r}", Stage.TASKS, status=400)
    return int(text)
