"""Asking an OpenAI-compatible endpoint for one reply: timeouts, retries with back-off, and a `Failure` for the rest.

What always holds: `complete` returns a reply that has a message, or raises `FailureError` and nothing else; it is tried
again only where another try may help (no connection, a timeout, 408, 409, 425, 429, 5xx), after the time that
`Retry-After` asks for or a doubling one with jitter. What it reads is bounded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from quintain.calling.connections import async_http_client
from quintain.calling.retry import retry_after_s
from quintain.failure import Failure, FailureError, FailureKind, Stage, one_line

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
SHOWN_CHARS: Final = 200
"""How much of an error's text is quoted."""
_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The first choice of a chat completion: its `message` as the wire has it, why it ended, and the tokens used."""

    message: Mapping[str, Any]
    finish: str | None
    prompt_tokens: int | None
    output_tokens: int | None


class ChatEndpoint:
    """One endpoint and one model. `request` is what every request says but its messages.

    `who` names the endpoint in messages, `stage` is where its failures belong; `timeout_s` bounds one try, and
    `max_reply_bytes` what is read of it. `sleep` is for tests.
    """

    def __init__(
        self,
        url: str,
        request: Mapping[str, Any],
        *,
        who: str,
        stage: Stage,
        token: str | None,
        timeout_s: float,
        retries: int,
        max_reply_bytes: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = async_http_client(url, token, proxied=True, timeout=timeout_s, limits=limits)
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._request = dict(request)
        self._who, self._stage = who, stage
        self._retries, self._max_reply_bytes, self._sleep = retries, max_reply_bytes, sleep

    async def complete(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> ChatReply:
        """The model's reply to `messages`; `more` is added to the request. Raises FailureError."""
        body = self._request | more | {"messages": list(messages)}
        pause = FIRST_PAUSE_S
        for left in range(self._retries, -1, -1):
            try:
                return await self._once(body)
            except FailureError as error:
                if not error.failure.retryable or left == 0:
                    raise
                wanted = error.retry_after_s if isinstance(error, _Busy) else None
            await self._sleep(min(wanted or pause * random.uniform(0.5, 1.5), LONGEST_PAUSE_S))
            pause *= 2
        raise AssertionError("unreachable: the last try returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _once(self, body: Mapping[str, Any]) -> ChatReply:
        try:
            async with self._http.stream("POST", self._url, json=body) as response:
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > self._max_reply_bytes:
                        message = f"its reply has more than {self._max_reply_bytes:,} bytes"
                        raise self._failed(FailureKind.TOO_LONG, message)
        except httpx.TimeoutException as error:
            raise self._failed(FailureKind.TIMEOUT, f"no reply in time ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self._failed(FailureKind.UNREACHABLE, f"{type(error).__name__}: {error}") from None
        if response.status_code != httpx.codes.OK:
            raise self._refused(response, bytes(data))
        try:
            return _reply(httpx.Response(200, content=bytes(data)).json())
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise self._failed(FailureKind.INVALID, f"its reply is no chat completion: {_text(bytes(data))}") from None

    def _failed(self, kind: FailureKind, message: str) -> FailureError:
        return FailureError.of(kind, self._stage, f"{self._who}: {message}")

    def _refused(self, response: httpx.Response, data: bytes) -> FailureError:
        status = response.status_code
        message = f"{self._who}: HTTP {status}: {_text(data)}"
        if status not in _AGAIN:
            return FailureError.of(FailureKind.REJECTED, self._stage, message)
        kind = FailureKind.OVERLOADED if status in (429, 503, 529) else FailureKind.CRASHED
        return _Busy(Failure.of(kind, self._stage, message, retryable=True), retry_after_s(response.headers))


class _Busy(FailureError):
    """A failure that says when to come back."""

    def __init__(self, failure: Failure, retry_after_s: float | None) -> None:
        super().__init__(failure)
        self.retry_after_s = retry_after_s


def _reply(body: Any) -> ChatReply:
    choice = body["choices"][0]
    message, usage = choice["message"], body.get("usage") or {}
    if not isinstance(message, dict):
        raise TypeError("a message is an object")
    return ChatReply(message, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _text(data: bytes) -> str:
    return one_line(data.decode("utf-8", "replace"), SHOWN_CHARS)
