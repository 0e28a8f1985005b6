"""The HTTP face of one environment: `/v1` and the pages around it, as a Starlette application.

What always holds: every answer that is no success is a `FailureBody` of the closed vocabulary, whatever
broke; no stack trace and no task's reference is in any answer; a request is read only up to the limit.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from quintain.codec import to_json
from quintain.envs.metrics import CONTENT_TYPE, Metrics
from quintain.envs.sessions import Sessions
from quintain.envs.verifying import Verifiers
from quintain.envs.wire import (
    MAX_ITEMS,
    MAX_TASKS,
    CreateEpisode,
    FailureBody,
    Refused,
    StepRequest,
    VerifyAnswer,
    VerifyRequest,
    read,
    refused,
    schema,
    status_of,
)
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

PAGE = 100
"""Tasks in a page unless `count` says otherwise."""


class EnvApp:
    """The application around `sessions`; `token`, where given, is asked for everywhere but at `/health`."""

    def __init__(self, sessions: Sessions, metrics: Metrics, *, token: str | None = None) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._token = token
        self._verifiers = Verifiers()
        metrics.counter("requests_total", "HTTP requests, by route and status.")
        metrics.counter("verdicts_total", "Verdicts given, by verifier and outcome.")
        routes: list[tuple[str, str, Stage, Handler]] = [
            ("POST", "/v1/episodes", Stage.RESET, self._create),
            ("POST", "/v1/episodes/{id}/step", Stage.STEP, self._step),
            ("GET", "/v1/episodes/{id}", Stage.STEP, self._status),
            ("DELETE", "/v1/episodes/{id}", Stage.CLOSE, self._close),
            ("GET", "/v1/tasks", Stage.TASKS, self._tasks),
            ("POST", "/v1/verify", Stage.VERIFY, self._verify),
            ("GET", "/metadata", Stage.TASKS, self._describe),
            ("GET", "/schema", Stage.REQUEST, self._schema),
            ("GET", "/metrics", Stage.REQUEST, self._render),
            ("GET", "/health", Stage.REQUEST, self._health),
        ]
        self.asgi = Starlette(
            routes=[
                Route(path, self._bounded(path, stage, handler), methods=[method])
                for method, path, stage, handler in routes
            ],
            exception_handlers={HTTPException: _no_such_page},
        )

    async def close(self) -> None:
        """Close the verifiers."""
        await self._verifiers.close()

    def _bounded(self, path: str, stage: Stage, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                if path != "/health":
                    self._let_in(request)
                response = await handler(request)
            except FailureError as error:
                response = _failed(error)
            except ClientDisconnect:
                response = Response(status_code=400)
            except Exception:  # the boundary: a mistake of ours, never shown to the client
                log.exception("%s %s failed", request.method, path)
                response = _failed(refused("the server made a mistake: its log says which", stage, FailureKind.CRASHED))
            self._metrics.add("requests_total", route=f"{request.method} {path}", status=str(response.status_code))
            return response

        return handle

    def _let_in(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            message = "this server wants its token: send it as `Authorization: Bearer …`"
            raise refused(message, Stage.REQUEST, status=401)

    async def _create(self, request: Request) -> Response:
        return _json(await self._sessions.create(read(await self._body(request), CreateEpisode, Stage.RESET)), 201)

    async def _step(self, request: Request) -> Response:
        asked = read(await self._body(request), StepRequest, Stage.STEP)
        return _json(await self._sessions.step(request.path_params["id"], asked))

    async def _status(self, request: Request) -> Response:
        return _json(to_json(self._sessions.status(request.path_params["id"])))

    async def _close(self, request: Request) -> Response:
        return _json(to_json(self._sessions.close(request.path_params["id"])))

    async def _tasks(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(set(query) - {"split", "start", "count"}):
            raise refused(f"/v1/tasks has no parameter {unknown[0]!r}: split, start, count", Stage.TASKS, status=400)
        start, count = _integer(query, "start", 0), _integer(query, "count", min(PAGE, MAX_TASKS))
        return _json(await self._sessions.tasks(query.get("split", "train"), start, count))

    async def _verify(self, request: Request) -> Response:
        from quintain.verifiers.base import Item

        asked = read(await self._body(request), VerifyRequest, Stage.VERIFY)
        if len(asked.items) > MAX_ITEMS:
            message = f"at most {MAX_ITEMS} items at a time, not {len(asked.items)}: send several batches"
            raise refused(message, Stage.VERIFY, FailureKind.TOO_LONG)
        if asked.deadline_s is not None and not 0 < asked.deadline_s < float("inf"):
            raise refused(f"deadline_s must be more than 0, not {asked.deadline_s}", Stage.VERIFY, status=400)
        try:
            verifier = self._verifiers.get(asked.verifier, asked.options)
            items = [Item(item.answer, item.reference) for item in asked.items]
            verdicts = await verifier.verify(items, deadline_s=asked.deadline_s)
        except QuintainError as error:
            raise refused(str(error), Stage.VERIFY, status=400) from None
        for verdict in verdicts:
            self._metrics.add("verdicts_total", verifier=asked.verifier, outcome=verdict.outcome)
        return _json(to_json(VerifyAnswer(tuple(verdicts))))

    async def _describe(self, request: Request) -> Response:
        return _json(await self._sessions.describe())

    async def _schema(self, request: Request) -> Response:
        return _json(json.dumps(schema()))

    async def _render(self, request: Request) -> Response:
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def _health(self, request: Request) -> Response:
        if not self._sessions.ready:
            raise refused("no worker process is running yet", Stage.REQUEST, FailureKind.UNREACHABLE)
        return _json('{"status": "ok"}')

    async def _body(self, request: Request) -> bytes:
        limit = self._sessions.limits.body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise refused(f"a request has at most {limit} bytes", Stage.REQUEST, FailureKind.TOO_LONG)
        return bytes(body)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _failed(error: FailureError) -> Response:
    response = _json(to_json(FailureBody(error.failure)), status_of(error))
    if isinstance(error, Refused) and error.retry_after_s is not None:
        response.headers["retry-after"] = f"{error.retry_after_s:g}"
    if response.status_code == 413:
        response.headers["connection"] = "close"  # or the rest of the request would be read after all
    if response.status_code == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "the pages are /v1/episodes, /v1/tasks, /v1/verify, /health, /metadata, /schema and /metrics"
    message = f"{request.method} {request.url.path[:100]}: {error.detail}; {known}"
    failure = Failure.of(FailureKind.REJECTED, Stage.REQUEST, message)
    return Response(
        to_json(FailureBody(failure)), error.status_code, headers=error.headers, media_type="application/json"
    )


def _integer(query: Mapping[str, Any], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.lstrip("-").isdecimal() or len(text) > 18:
        raise refused(f"{name} must be a whole number, not {text[:40]!r}", Stage.TASKS, status=400)
    return int(text)
