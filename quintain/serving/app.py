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
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute, compile_path
from starlette.types import Lifespan
from starlette.websockets import WebSocket

from quintain.codec import to_json
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.serving.listen import SOCKET_PATH
from quintain.serving.logs import tell
from quintain.serving.metrics import CONTENT_TYPE, Metrics
from quintain.serving.openapi import openapi
from quintain.serving.refusals import FailureBody, refused, retry_after_of, status_of
from quintain.serving.tokens import ANYBODY, Role, Tokens
from quintain.serving.websocket import PageAnswer, RequestSocket

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


@dataclass(slots=True)
class PageRequest:
    """A request that has come in whole: what its path and its query say, its body, and whose token it came with."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    holder: str


@dataclass(frozen=True, slots=True)
class WholePage:
    """A page's handler that `answer`s requests of at most `limit_bytes`, each in one piece: a text is a good answer.

    Such a page is also reached over a socket that many requests share (`SOCKET_PATH`).
    """

    answer: Callable[[PageRequest], str | PageAnswer | Awaitable[str | PageAnswer]]
    limit_bytes: int

    async def __call__(self, request: Request) -> Response:
        body = await read_body(request, self.limit_bytes)
        found = self.answer(PageRequest(request.path_params, request.query_params, body, request.state.holder))
        return _response(_answer(found if isinstance(found, str | PageAnswer) else await found))


def application(
    pages: Sequence[Page],
    metrics: Metrics,
    tokens: Tokens,
    *,
    under_way: set[asyncio.Future[Any]] | None = None,
    sockets: Mapping[str, Socket] | None = None,
    lifespan: Lifespan[Starlette] | None = None,
) -> Starlette:
    """The application of `pages`, of `/openapi.json` about them, and of WebSockets by their paths: all ask for tokens.

    `under_way` has what is being answered on sockets that many requests share.
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

    def unknown(method: str, path: str, status: int, detail: str) -> str:
        tell("request", route=f"{method} ?", holder=None, status=status)
        message = f"{method} {path[:100]}: {detail}; the pages are {known}"
        return to_json(FailureBody(Failure.of(FailureKind.REJECTED, Stage.REQUEST, message)))

    async def no_such_page(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = unknown(request.method, request.url.path, error.status_code, error.detail)
        return Response(said, error.status_code, headers=error.headers, media_type="application/json")

    working = set() if under_way is None else under_way
    shared = [(page, page.handler, compile_path(page.path)[0]) for page in pages if isinstance(page.handler, WholePage)]

    def asked(
        given: Mapping[str, str], method: str, target: str, body: bytes, say: Callable[[PageAnswer], None]
    ) -> None:
        path, _, query = target.partition("?")
        path = unquote(path)
        status = HTTPStatus.NOT_FOUND
        for page, whole, pattern in shared:  # noqa: B007
            if (found := pattern.match(path)) is not None and page.method == method:
                break
            status = status if found is None else HTTPStatus.METHOD_NOT_ALLOWED
        else:
            return say(PageAnswer(unknown(method, path, status, status.phrase), status))

        def ended(answer: str | PageAnswer) -> None:
            answer = _answer(answer)
            _count(metrics, page, values.get("id"), holder, answer.status, began)
            say(answer)

        def answered(future: asyncio.Future[str | PageAnswer]) -> None:
            working.discard(future)
            try:
                ended(future.result())
            except (Exception, asyncio.CancelledError) as error:
                ended(_failed(page, error))

        values, holder, began = found.groupdict(), None, time.monotonic()
        try:
            holder = _holder(page, tokens, given, values.get("id"))
            if len(body) > whole.limit_bytes:
                raise _too_long(whole.limit_bytes)
            answer = whole.answer(
                PageRequest(values, dict(parse_qsl(query, keep_blank_values=True)) if query else {}, body, holder)
            )
        except Exception as error:
            return ended(_failed(page, error))
        if isinstance(answer, str | PageAnswer):
            return ended(answer)
        future = asyncio.ensure_future(answer)
        working.add(future)
        future.add_done_callback(answered)

    async def many(connection: WebSocket) -> None:
        await RequestSocket(connection, partial(asked, connection.headers), working).serve()

    sockets = {**(sockets or {}), **({SOCKET_PATH: many} if shared else {})}
    return Starlette(
        routes=[
            *(Route(page.path, _bounded(page, metrics, tokens), methods=[page.method]) for page in pages),
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
                    raise _too_long(limit_bytes)
    except TimeoutError:
        message = f"the request did not come in whole within {within_s:g} s"
        raise refused(message, Stage.REQUEST, FailureKind.TIMEOUT, status=408) from None
    return bytes(body)


def _too_long(limit_bytes: int) -> FailureError:
    return refused(f"a request has at most {limit_bytes} bytes", Stage.REQUEST, FailureKind.TOO_LONG)


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
            request.state.holder = holder = _holder(page, tokens, request.headers, session)
            response = await page.handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception as error:
            response = _response(_failed(page, error))
        _count(metrics, page, session, holder, response.status_code, began)
        return response

    return handle


def _count(metrics: Metrics, page: Page, session: str | None, holder: str | None, status: int, began: float) -> None:
    route = f"{page.method} {page.path}"
    metrics.add("requests_total", route=route, status=str(status))
    elapsed_s = round(time.monotonic() - began, 6)
    tell("request", route=route, id=session, holder=holder, status=status, elapsed_s=elapsed_s)


def _holder(page: Page, tokens: Tokens, headers: Mapping[str, str], session: str | None) -> str:
    """Whose token a request with `headers` has. Raises Refused where `page` is not for them."""
    if page.open:
        return ANYBODY
    given = (headers.get("authorization") or headers.get("x-api-key", "")) if tokens else ""  # that is Anthropic's way
    return tokens.admit(given, page.role, session).name


def _guarded(socket: Socket, tokens: Tokens) -> Socket:
    async def handle(connection: WebSocket) -> None:
        try:
            who = tokens.admit(connection.headers.get("authorization", ""), Role.TRAINER)
        except FailureError:
            await connection.close()  # before it is accepted, which is a 403
            tell("request", route=f"WS {connection.url.path}", holder=None, status=403)
            return
        connection.state.holder = who.name
        await socket(connection)

    return handle


def _failed(page: Page, error: BaseException) -> PageAnswer:
    """The boundary: what is said where `error` came of a request to `page`."""
    if isinstance(error, asyncio.CancelledError):
        error = refused("the server is stopping", page.stage, FailureKind.UNREACHABLE)
    elif not isinstance(error, FailureError):  # a mistake of ours, never shown to the client
        log.error("%s %s failed", page.method, page.path, exc_info=error)
        mistake = "the server made a mistake: its log says which"
        error = refused(mistake, page.stage, FailureKind.CRASHED)
    return PageAnswer(to_json(FailureBody(error.failure)), status_of(error), retry_after_of(error))


def _answer(found: str | PageAnswer) -> PageAnswer:
    return found if isinstance(found, PageAnswer) else PageAnswer(found)


def _response(answer: PageAnswer) -> Response:
    response = json_answer(answer.text, answer.status) if answer.text else Response(status_code=answer.status)
    if answer.retry_after_s is not None:
        response.headers["retry-after"] = f"{answer.retry_after_s:g}"
    if answer.status in (408, 413):
        response.headers["connection"] = "close"  # or the rest of the request would be read after all
    if answer.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
