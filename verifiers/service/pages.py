"""`POST /v1/verify` and `GET /v1/verifiers`, as pages of whichever server has them.

What always holds: the room in the queue and the memory that a request takes are free again when it is answered, or when
its client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quintain.codec import to_json
from quintain.failure import FailureKind, Stage
from quintain.serving.app import Page, attended, json_answer, read_body
from quintain.serving.refusals import read, refused
from quintain.verifiers.service.catalogue import offers
from quintain.verifiers.service.job import Job
from quintain.verifiers.service.jobs import Jobs
from quintain.verifiers.service.policy import AccessPolicy
from quintain.verifiers.service.wire import NDJSON, StreamEnd, VerifyAnswer, VerifyRequest

CHUNK_CHARS: Final = 1 << 16
SLOW_READER_S: Final = 30.0
"""How much longer than its items a streamed answer may take to be read."""
THREAD_BYTES: Final = 1 << 20
"""A longer request is parsed in a thread, so that others are answered meanwhile."""


class VerifyPages:
    """The pages over `jobs`."""

    def __init__(self, jobs: Jobs, policy: AccessPolicy) -> None:
        self._jobs, self._policy = jobs, policy
        self._offers: str | None = None
        self._waiting_bytes = 0

    def pages(self) -> tuple[Page, ...]:
        """What to add to a server's."""
        return (
            Page("POST", "/v1/verify", Stage.VERIFY, self._verify, body=VerifyRequest, answer=VerifyAnswer),
            Page("GET", "/v1/verifiers", Stage.REQUEST, self._list),
        )

    @contextmanager
    def weighing(self) -> Iterator[Callable[[int], None]]:
        """Counts a request's bytes as they come, until it is answered. Raises Refused where there are too many."""
        mine = 0

        def taken(count: int) -> None:
            nonlocal mine
            mine += count
            self._waiting_bytes += count
            if self._waiting_bytes > self._jobs.limits.waiting_bytes:
                message = "the requests in progress are as large as this server can hold"
                raise refused(message, Stage.REQUEST, FailureKind.OVERLOADED)

        try:
            yield taken
        finally:
            self._waiting_bytes -= mine

    async def read(self, request: Request, taken: Callable[[int], None]) -> bytes:
        """The request's body, within the limits."""
        limits = self._jobs.limits
        return await read_body(request, limits.body_bytes, within_s=limits.read_s, taken=taken)

    async def _verify(self, request: Request) -> Response:
        async with AsyncExitStack() as stack:
            body = await self.read(request, stack.enter_context(self.weighing()))
            if len(body) > THREAD_BYTES:
                asked = await asyncio.to_thread(read, body, VerifyRequest, Stage.VERIFY)
            else:
                asked = read(body, VerifyRequest, Stage.VERIFY)
            del body
            job = await stack.enter_async_context(self._jobs.job(asked, request.state.holder))
            if asked.stream or NDJSON in request.headers.get("accept", ""):
                within_s = (asked.timeout_s or self._jobs.limits.timeout_s) + SLOW_READER_S
                return _Streamed(job, stack.pop_all(), within_s)
            verdicts = await attended(request.receive, job.all())
            return json_answer(f'{{"verdicts":[{",".join(verdict.text for verdict in verdicts)}]}}')

    async def _list(self, request: Request) -> Response:
        if self._offers is None:
            self._offers = to_json(await offers(self._policy, self._jobs.limits))
        return json_answer(self._offers)


class _Streamed(Response):
    """A verdict a line; `resources` is what the request holds until its client has the last one, or has gone."""

    media_type = NDJSON

    def __init__(self, job: Job, resources: AsyncExitStack, within_s: float) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._job, self._resources, self._within_s = job, resources, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            with suppress(ClientDisconnect, TimeoutError):  # nobody is there to be told
                await attended(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async with asyncio.timeout(self._within_s):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(_chunks(self._job)) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(job: Job) -> AsyncGenerator[str, None]:
    """The lines of a streamed answer, as many together as are ready."""
    lines, count = "", 0
    async with aclosing(job.verdicts()) as verdicts:
        async for index, encoded in verdicts:
            count += 1
            lines += f'{{"index":{index},"verdict":{encoded.text}}}\n'
            if len(lines) > CHUNK_CHARS or not job.more:
                yield lines
                lines = ""
    yield lines + to_json(StreamEnd(count)) + "\n"
