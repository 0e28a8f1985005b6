"""Requests to one server of ours, asked again where that can help.

What always holds: whatever breaks is a `FailureError`, within a bounded time. Every request of ours may be
repeated, so one that got no answer is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from quintain.calling.connections import Connections, bearer, http_client
from quintain.calling.retry import Retry, RetryPolicy, retry_after_s
from quintain.calling.websocket import Answered, SharedSocket
from quintain.codec import from_json
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.serving.refusals import FailureBody

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_S = 5.0
RETRIED = frozenset({429, 502, 503})
"""What a server answers where it may do as asked later, unless its failure says that it will not."""


class Caller:
    """A server's address and a pool of connections. `server` says what is there, for messages.

    Waits between tries are drawn from `seed`; `between` is called before each of them (without an event loop), and may
    raise to stop trying. `multiplexed`: `call` asks over one WebSocket where the server has it. Raises QuintainError
    for what is no address.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        server: str,
        policy: RetryPolicy,
        max_connections: int = 1,
        seed: int = 0,
        between: Callable[[], None] = lambda: None,
        multiplexed: bool = False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise QuintainError(f"the address of the {server} looks like http://127.0.0.1:8000, not {url!r}")
        self.url = url.rstrip("/")
        self.policy = policy
        self._headers = {"content-type": "application/json"} | bearer(token)
        self._server, self._max_connections = server, max_connections
        self._rng = random.Random(seed)
        self._between, self._multiplexed = between, multiplexed
        self._connections: Connections | None = None
        self._sync: httpx.Client | None = None

    async def aclose(self) -> None:
        """Close the connections. The next call opens new ones."""
        self.close()
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    def close(self) -> None:
        """Close the connections that were opened without an event loop. The next call opens a new one."""
        client, self._sync = self._sync, None
        if client is not None:
            client.close()

    async def call(
        self, method: str, path: str, stage: Stage, body: str | None = None, policy: RetryPolicy | None = None
    ) -> bytes:
        """The body of the answer. Raises FailureError."""

        async def whole(response: httpx.Response) -> bytes:
            return await response.aread()

        socket = self.here().socket
        if socket is None:
            return await self.consume(method, path, stage, lambda: body, whole, policy=policy)

        async def once(left_s: float) -> bytes:
            answer = await socket.ask(method, path, body)
            if answer is None:
                return await self._over_http(left_s, method, path, body, whole)
            if answer.status >= 300:
                raise _Refused(answer)
            return answer.body

        return await self._tried(once, stage, policy)

    async def consume(
        self,
        method: str,
        path: str,
        stage: Stage,
        body: Callable[[], str | None],
        read: Callable[[httpx.Response], Awaitable[T]],
        *,
        headers: Mapping[str, str] | None = None,
        policy: RetryPolicy | None = None,
    ) -> T:
        """What `read` makes of a successful answer. Each try asks for the `body` anew. Raises FailureError."""
        return await self._tried(
            lambda left_s: self._over_http(left_s, method, path, body(), read, headers), stage, policy
        )

    async def _over_http(
        self,
        left_s: float,
        method: str,
        path: str,
        body: str | None,
        read: Callable[[httpx.Response], Awaitable[T]],
        headers: Mapping[str, str] | None = None,
    ) -> T:
        import httpx

        timeout = httpx.Timeout(left_s, connect=min(CONNECT_S, left_s))
        request = httpx.Request(
            method,
            self.url + path,
            headers={**self._headers, **(headers or {})},
            content=body,
            extensions={"timeout": timeout.as_dict()},
        )
        async with self.here().answer(request) as response:
            if response.is_success:
                return await read(response)
            raise _Refused(Answered(response.status_code, response.headers, await response.aread()))

    async def _tried(self, once: Callable[[float], Awaitable[T]], stage: Stage, policy: RetryPolicy | None) -> T:
        """What `once` comes to, which is given the seconds that are left; tried again where that can help."""
        import httpx

        retry = self._retry(policy)
        while True:
            left_s = retry.left(time.monotonic())
            try:
                async with asyncio.timeout(left_s):
                    return await once(left_s)
            except (httpx.TransportError, ConnectionError, TimeoutError) as error:
                wait_s = retry.silent(self._silence(error, stage), time.monotonic())
            except _Refused as refused:
                wait_s = self._refusal(refused.answer, stage, retry)
            await asyncio.sleep(wait_s)

    def call_sync(
        self,
        method: str,
        path: str,
        stage: Stage,
        body: bytes | None = None,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        policy: RetryPolicy | None = None,
    ) -> httpx.Response:
        """The whole answer, without an event loop. Raises FailureError."""
        import httpx

        retry = self._retry(policy)
        if self._sync is None:
            self._sync = http_client(self.url)
        while True:
            left_s = retry.left(time.monotonic())
            timeout = httpx.Timeout(left_s, connect=min(CONNECT_S, left_s))
            try:
                response = self._sync.request(
                    method,
                    path,
                    content=body,
                    params=params,
                    headers={**self._headers, **(headers or {})},
                    timeout=timeout,
                )
            except httpx.TransportError as error:
                wait_s = retry.silent(self._silence(error, stage), time.monotonic())
            else:
                if response.is_success:
                    return response
                answer = Answered(response.status_code, response.headers, response.content)
                wait_s = self._refusal(answer, stage, retry)
            self._between()
            time.sleep(wait_s)

    def parsed(self, body: bytes, kind: type[T], stage: Stage) -> T:
        """The `kind` that an answer holds. Raises FailureError."""
        try:
            return from_json(body, kind)
        except (QuintainError, FailureError) as error:
            message = f"the answer of {self.url} is no {kind.__name__}: {error}"
            raise FailureError.of(FailureKind.INVALID, stage, message) from None

    def here(self) -> Connections:
        """The connections of the running event loop."""
        if self._connections is None or self._connections.loop is not asyncio.get_running_loop():
            socket = SharedSocket(self.url, self._headers) if self._multiplexed else None
            self._connections = Connections(verify=self._secure, most=self._max_connections, socket=socket)
        return self._connections

    def _retry(self, policy: RetryPolicy | None) -> Retry:
        return Retry(policy or self.policy, self._rng, time.monotonic())

    @property
    def _secure(self) -> bool:
        return self.url.startswith("https")

    def _silence(self, error: Exception, stage: Stage) -> Failure:
        import httpx

        slow = isinstance(error, (httpx.ReadTimeout, TimeoutError))
        kind = FailureKind.TIMEOUT if slow else FailureKind.UNREACHABLE
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return Failure.of(kind, stage, f"no answer from the {self._server} at {self.url} ({said})")

    def _refusal(self, answer: Answered, stage: Stage, retry: Retry) -> float:
        """How long to wait before asking again, or FailureError with what the server said."""
        try:
            body: FailureBody = from_json(answer.body, FailureBody)
            failure = body.failure
        except QuintainError:
            text = one_line(answer.body.decode(errors="replace"), 80)
            message = f"{self.url} answered {answer.status} {text!r}: is the {self._server} there?"
            kind = FailureKind.UNREACHABLE if answer.status in RETRIED else FailureKind.INVALID
            failure = Failure.of(kind, stage, message)
        if answer.status not in RETRIED or not failure.retryable:
            raise FailureError(failure)
        return retry.refused(failure, time.monotonic(), retry_after_s(answer.headers) or 0.0)


class _Refused(Exception):
    def __init__(self, answer: Answered) -> None:
        super().__init__(answer)
        self.answer = answer
