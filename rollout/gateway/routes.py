"""The gateway over HTTP: pages for the harness that opens sessions, and those of OpenAI and Anthropic for the
agent within one.

    POST /sessions                            {task?, metadata?, ...}           -> id, base_url
    GET  /sessions/{id}                                                         -> status
    POST /sessions/{id}/reward                {reward, rewards?, info?, ...}    -> status
    POST /sessions/{id}/fail                  {message, kind?}                  -> status
    POST /sessions/{id}/v1/chat/completions   OpenAI's
    POST /sessions/{id}/v1/responses          OpenAI's
    POST /sessions/{id}/v1/messages           Anthropic's
    POST /sessions/{id}/v1/responses/input_tokens, /sessions/{id}/v1/messages/count_tokens
    GET  /sessions/{id}/v1/models             OpenAI's and Anthropic's
    GET  /sessions/{id}/v1/models/{name}

What always holds: an answer that is no success has the body of `errors`; no stack trace is in any; a client that goes
away while its call is sampled ends the sampling.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from quintain.codec import to_json
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.rollout.gateway.answers import KEEP_ALIVE, Answer
from quintain.rollout.gateway.chat import ChatRequest
from quintain.rollout.gateway.dialects import CHAT, COUNTS, DIALECTS, Count, Dialect, no_such_page
from quintain.rollout.gateway.errors import ApiError, as_api_error, error_headers
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.gateway.wire import FailRequest, OpenSession, RewardRequest
from quintain.serving.app import attended, json_answer, read_body
from quintain.serving.refusals import read

log = logging.getLogger(__name__)

_EVENTS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


def gateway_routes(gateway: Gateway) -> list[Route]:
    """The pages of `gateway`. Whoever mounts them checks tokens before, and closes the gateway after."""
    pages = _Pages(gateway)
    return [
        Route("/sessions", _bounded(pages.open), methods=["POST"]),
        Route("/sessions/{id}", _bounded(pages.status), methods=["GET"]),
        Route("/sessions/{id}/reward", _bounded(pages.reward), methods=["POST"]),
        Route("/sessions/{id}/fail", _bounded(pages.fail), methods=["POST"]),
        *(
            Route(f"/sessions/{{id}}/v1/{path}", _bounded(pages.sampled(dialect), dialect), methods=["POST"])
            for path, dialect in DIALECTS.items()
        ),
        *(
            Route(f"/sessions/{{id}}/v1/{path}", _bounded(pages.counted(count), count.dialect), methods=["POST"])
            for path, count in COUNTS.items()
        ),
        Route("/sessions/{id}/v1/models", _bounded(pages.models), methods=["GET"]),
        Route("/sessions/{id}/v1/models/{name:path}", _bounded(pages.model), methods=["GET"]),
        Route("/sessions/{id}/v1/{rest:path}", _bounded(pages.nothing), methods=["GET", "POST", "DELETE"]),
    ]


class _Pages:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def open(self, request: Request) -> Response:
        asked = read(await self._body(request) or b"{}", OpenSession, Stage.REQUEST)
        opened = self.gateway.open(asked, str(request.base_url).rstrip("/"))
        return json_answer(to_json(opened), 201)

    async def status(self, request: Request) -> Response:
        return json_answer(to_json(self.gateway.status(request.path_params["id"])))

    async def reward(self, request: Request) -> Response:
        asked = read(await self._body(request), RewardRequest, Stage.REQUEST)
        return json_answer(to_json(await self.gateway.reward(request.path_params["id"], asked)))

    async def fail(self, request: Request) -> Response:
        asked = read(await self._body(request), FailRequest, Stage.REQUEST)
        return json_answer(to_json(await self.gateway.fail(request.path_params["id"], asked)))

    async def models(self, request: Request) -> Response:
        listed = [_model(name) for name in self.gateway.models(request.path_params["id"])]
        ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"], "has_more": False}  # Anthropic's
        return JSONResponse({"object": "list", "data": listed, **ends})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.gateway.check_model(request.path_params["id"], name)
        return JSONResponse(_model(name))

    def counted(self, count: Count) -> Callable[[Request], Awaitable[Response]]:
        """The page that counts a prompt's tokens."""

        async def tell(request: Request) -> Response:
            asked = count.read(await self._body(request))
            return JSONResponse(count.told(self.gateway.count(request.path_params["id"], asked)))

        return tell

    def sampled(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """The page of the calls that are spoken in `dialect`."""

        async def sample(request: Request) -> Response:
            asked = dialect.read(await self._body(request))
            work = asyncio.ensure_future(self.gateway.chat(request.path_params["id"], asked))
            if not asked.stream:
                await _while_there(request.receive, work)
                return JSONResponse(dialect.whole(work.result(), asked, int(time.time())))
            # what fails at once is answered with its status, which clients know how to ask again; then it streams
            keep_alive_s = self.gateway.limits.keep_alive_s
            await _while_there(request.receive, work, within_s=keep_alive_s)
            if work.done():
                work.result()
            return _Stream(work, asked, dialect, keep_alive_s)

        return sample

    async def nothing(self, request: Request) -> Response:
        self.gateway.status(request.path_params["id"])
        raise no_such_page(f"{request.method} /v1/{request.path_params['rest']}")

    async def _body(self, request: Request) -> bytes:
        limits = self.gateway.limits
        return await read_body(request, limits.body_bytes, within_s=limits.body_s)


def _model(name: str) -> dict[str, Any]:
    """A model as OpenAI and as Anthropic describe one."""
    of_anthropic = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "quintain", **of_anthropic}


class _Stream(Response):
    """Server-sent events, with signs of life until `work` is done."""

    def __init__(self, work: asyncio.Task[Answer], asked: ChatRequest, dialect: Dialect, keep_alive_s: float) -> None:
        super().__init__(headers=_EVENTS)
        del self.headers["content-length"]  # nobody knows it yet
        self._work, self._asked, self._dialect, self._keep_alive_s = work, asked, dialect, keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await attended(receive, self._speak(send))
        except ClientDisconnect:
            pass
        finally:
            await _cancelled(self._work)

    async def _speak(self, send: Send) -> None:
        async def say(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while not self._work.done():
            await say(KEEP_ALIVE)
            await asyncio.wait([self._work], timeout=self._keep_alive_s)
        try:
            answer = self._work.result()
        except FailureError as error:
            await say(self._dialect.broken(as_api_error(error)), more=False)
            return
        for piece in self._dialect.pieces(answer, self._asked, int(time.time())):
            await say(piece)
        await say(b"", more=False)


async def _while_there(receive: Receive, work: asyncio.Task[Answer], within_s: float | None = None) -> None:
    """Wait for `work`, at most `within_s`. A client that goes away cancels it, and this raises ClientDisconnect."""

    async def waited() -> None:
        await asyncio.wait([work], timeout=within_s)

    try:
        await attended(receive, waited())
    except BaseException:
        await _cancelled(work)
        raise


async def _cancelled(work: asyncio.Task[Answer]) -> None:
    work.cancel()
    await asyncio.wait([work])


def _bounded(
    page: Callable[[Request], Awaitable[Response]], dialect: Dialect = CHAT
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return await page(request)
        except FailureError as error:
            refusal = as_api_error(error)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:  # the boundary: a mistake of ours, never shown to the client
            log.exception("%s %s failed", request.method, request.url.path)
            mistake = Failure.of(
                FailureKind.CRASHED, Stage.REQUEST, "the server made a mistake: its log says which", retryable=False
            )
            refusal = ApiError(mistake, 500, code="server_error")
        return JSONResponse(dialect.refused(refusal), refusal.status or 500, headers=error_headers(refusal))

    return handle
