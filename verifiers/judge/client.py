"""Asking an OpenAI-compatible endpoint for one reply: timeouts, retries with back-off, and a `Failure` for the rest.

What always holds: `ask` returns the text of a reply, or raises `FailureError` and nothing else; it is tried again
only where another try may help (no connection, a timeout, 408, 409, 425, 429, 5xx), after the time that `Retry-After`
asks for or a doubling one with jitter. What it reads is bounded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import httpx

from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.verifiers.text import shown

MAX_REPLY_BYTES: Final = 1 << 20
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class ChatClient:
    """One endpoint and one model."""

    def __init__(
        self,
        url: str,
        request: Mapping[str, Any],
        *,
        token: str | None,
        timeout_s: float,
        retries: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(timeout=timeout_s, headers=headers, follow_redirects=False)
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._request = dict(request)
        self._retries = retries
        self._sleep = sleep

    async def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of the model's reply to `messages`."""
        pause = FIRST_PAUSE_S
        for left in range(self._retries, -1, -1):
            try:
                return await self._once(messages)
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

    async def _once(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = self._request | {"messages": list(messages)}
        try:
            async with self._http.stream("POST", self._url, json=body) as response:
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > MAX_REPLY_BYTES:
                        raise _failed(FailureKind.TOO_LONG, f"its reply has more than {MAX_REPLY_BYTES:,} bytes")
        except httpx.TimeoutException as error:
            raise _failed(FailureKind.TIMEOUT, f"no reply in time ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise _failed(FailureKind.UNREACHABLE, f"{type(error).__name__}: {error}") from None
        if response.status_code != httpx.codes.OK:
            raise _refused(response, bytes(data))
        try:
            reply = httpx.Response(200, content=bytes(data)).json()["choices"][0]["message"]
            content = reply["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _failed(FailureKind.INVALID, f"its reply is no chat completion: {_text(bytes(data))}") from None
        if not isinstance(content, str):
            raise _failed(FailureKind.INVALID, "its reply has no text")
        return content


class _Busy(FailureError):
    """A failure that says when to come back."""

    def __init__(self, failure: Failure, retry_after_s: float | None) -> None:
        super().__init__(failure)
        self.retry_after_s = retry_after_s


def _failed(kind: FailureKind, message: str, retryable: bool | None = None) -> FailureError:
    return FailureError(Failure.of(kind, Stage.VERIFY, f"the judge: {message}", retryable=retryable))


def _refused(response: httpx.Response, data: bytes) -> FailureError:
    status = response.status_code
    message = f"the judge: HTTP {status}: {_text(data)}"
    if status not in _AGAIN:
        return FailureError(Failure.of(FailureKind.REJECTED, Stage.VERIFY, message))
    kind = FailureKind.OVERLOADED if status in (429, 503, 529) else FailureKind.CRASHED
    try:
        wait_s = max(float(response.headers.get("retry-after", "")), 0.0)
    except ValueError:
        wait_s = None
    return _Busy(Failure.of(kind, Stage.VERIFY, message, retryable=True), wait_s)


def _text(data: bytes) -> str:
    return shown(data.decode("utf-8", "replace"))
