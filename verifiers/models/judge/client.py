"""Asking an OpenAI-compatible endpoint for the text of one reply.

What always holds: `ask` returns the text of a reply, or raises `FailureError` and nothing else; `ChatEndpoint` says
when it is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from quintain.calling.chat import ChatEndpoint
from quintain.failure import Failure, FailureError, FailureKind, Stage

MAX_REPLY_BYTES: Final = 1 << 20


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
        self._endpoint = ChatEndpoint(
            url,
            request,
            who="the judge",
            stage=Stage.VERIFY,
            token=token,
            timeout_s=timeout_s,
            retries=retries,
            max_reply_bytes=MAX_REPLY_BYTES,
            sleep=sleep,
        )

    async def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of the model's reply to `messages`."""
        content = (await self._endpoint.complete(messages)).message.get("content")
        if not isinstance(content, str):
            failure = Failure.of(FailureKind.INVALID, Stage.VERIFY, "the judge: its reply has no text")
            raise FailureError(failure)
        return content

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
