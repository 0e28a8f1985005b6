"""Pages as a Starlette application: who is let in, how a request is read, what every refusal looks like.

What always holds: every answer that is no success is a `FailureBody` of the closed vocabulary, whatever broke;
no stack trace is in any answer; a request is read only up to its limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route, WebSocketRoute
from starlette.types import Lifespan
from starlette.websockets import WebSocket

from quintain.codec import to_json
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.serving.listen import SOCKET_PATH
from quintain.serving.logs import tell
from quintain.serving.metrics import CONTENT_TYPE, Metrics
from quintain.serving.openapi import openapi
from quintain.serving.refusals import FailureBody, refused, retry_after_of, status_of
from quintain.serving.tokens import Role, Tokens
from quintain.serving.websocket import RequestSocket

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
Socket = Callable[[WebSocket], Awaitable[None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """One page; `stage` is where its failures are, `role` the least that may use it. One that is `open` asks nobody.

    A page that agents may use has the session's id in its path. `body` and `answer` are the types of what is asked and
    answered as JSON, for `/openapi.json`.
    """

    method: str
    path: str
    stage: Stage
    handler: Handler
    open: bool = False
    role: Role = Role.TRAINER
    body: type | None = None
    answer: type | None = None


def application(
    pages: Sequence[Page],
    metrics: Metrics,
    tokens: Tokens,
    *,
    multiplexed: Sequence[Page] = (),
    under_way: set[asyncio.Task[None]] | None = None,
    sockets: Mapping[str, Socket] | None = None,
    lifespan: Lifespan[Starlette] | None = None,
) -> Starlette:
    """The application of `pages`, of `/openapi.json` about them, and of WebSockets by their paths: all ask for tokens.

    Those that are `multiplexed`, each of which answers in one piece, are also reached over one socket (`SOCKET_PATH`);
    `under_way` has what is being answered there.
    `state.holder`, of a request or a socket, is the name of whose token it came with.
    """
    metrics.counter("requests_total", "HTTP requests, by route and status.")
    described: list[str] = []

    async def describe(request: Request) -> Response:
        if not described:  # pydantic takes its time
            described.append(json.dumps(openapi(pages)))
        return json_answer(described[0])

    pages = (*pages, Page("GET", "/openapi.json", Stage.REQUEST, describe))
    known = ", ".join(dict.fromkeys(page.path for page in pages if "{" not in page.path))

    async def no_such_page(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:100]}: {error.detail}; the pages are {known}"
        failure = Failure.of(FailureKind.REJECTED, Stage.REQUEST, message)
        return Response(
            to_json(FailureBody(failure)), error.status_code, headers=error.headers, media_type="application/json"
        )

    routes = {page: Route(page.path, _bounded(page, metrics, tokens), methods=[page.method]) for page in pages}
    working: set[asyncio.Task[None]] = set() if under_way is None else under_way
    at_socket = [routes[page] for page in multiplexed]

    async def respond(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Response:
        status = 404
        for route in at_socket:
            match, more = route.matches(scope)
            if match is Match.FULL:
                answer: Response = await route.endpoint(Request({**scope, **more}, receive))
                return answer
            status = 405 if match is Match.PARTIAL else status
        return await no_such_page(Request(scope), HTTPException(status))

    async def many(connection: WebSocket) -> None:
        await RequestSocket(connection, respond, working).serve()

    sockets = {**(sockets or {}), **({SOCKET_PATH: many} if at_socket else {})}
    return Starlette(
        routes=[
            *routes.values(),
            *(WebSocketRoute(path, _guarded(socket, tokens)) for path, socket in sockets.items()),
        ],
        exception_handlers={HTTPException: no_such_page},
        lifespan=lifespan,
    )


def metrics_page(metrics: Metrics) -> Page:
    """`GET /metrics`."""

    async def render(request: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return Page("GET", "/metrics", Stage.REQUEST, render)


def json_answer(text: str, status: int = 200) -> Response:
    """The JSON `text` as an answer."""
    return Response(text, status, media_type="application/json")


async def read_body(
    request: Request,
    limit_bytes: int,
    *,
    within_s: float | None = None,
    taken: Callable[[int], None] = lambda count: None,
) -> bytes:
    """The body of `request`. Raises Refused beyond `limit_bytes` or after `within_s`.

    `taken` is told the length of each piece as it comes, and may raise.
    """
    body = bytearray()
    try:
        async with contextlib.nullcontext() if within_s is None else asyncio.timeout(within_s):
            async for chunk in request.stream():
                taken(len(chunk))
                body += chunk
                if len(body) > limit_bytes:
                    raise refused(f"a request has at most {limit_bytes} bytes", Stage.REQUEST, FailureKind.TOO_LONG)
    except TimeoutError:
        message = f"the request did not come in whole within {within_s:g} s"
        raise refused(message, Stage.REQUEST, FailureKind.TIMEOUT, status=408) from None
    return bytes(body)


async def attended(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, while the client waits for it; the request's body has been read.

    A client that goes away cancels the work, and this raises ClientDisconnect.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])


def _bounded(page: Page, metrics: Metrics, tokens: Tokens) -> Handler:
    async def handle(request: Request) -> Response:
        began, session, holder = time.monotonic(), request.path_params.get("id"), None
        try:
            if not page.open:
                given = request.headers if tokens else {}
                authorization = given.get("authorization") or given.get("x-api-key", "")  # which is Anthropic's way
                request.state.holder = holder = tokens.admit(authorization, page.role, session).name
            response = await page.handler(request)
        except FailureError as error:
            response = _failed(error)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception:  # the boundary: a mistake of ours, never shown to the client
            log.exception("%s %s failed", request.method, page.path)
            mistake = "the server made a mistake: its log says which"
            response = _failed(refused(mistake, page.stage, FailureKind.CRASHED))
        route, elapsed_s = f"{request.method} {page.path}", round(time.monotonic() - began, 6)
        metrics.add("requests_total", route=route, status=str(response.status_code))
        tell("request", route=route, id=session, holder=holder, status=response.status_code, elapsed_s=elapsed_s)
        return response

    return handle


def _guarded(socket: Socket, tokens: Tokens) -> Socket:
    async def handle(connection: WebSocket) -> None:
        try:
            who = tokens.admit(connection.headers.get("authorization", ""), Role.TRAINER)
        except FailureError:
            await connection.close()  # before it is accepted, which is a 403
            return
        connection.state.holder = who.name
        await socket(connection)

    return handle


def _failed(error: FailureError) -> Response:
    response = json_answer(to_json(FailureBody(error.failure)), status_of(error))
    if (wait_s := retry_after_of(error)) is not None:
        response.headers["retry-after"] = f"{wait_s:g}"
    if response.status_code in (408, 413):
        response.headers["connection"] = "close"  # or the rest of the request would be read after all
    if response.status_code == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
