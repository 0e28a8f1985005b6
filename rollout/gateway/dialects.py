"""The APIs that agents speak: how a call is read, and how its answer or failure is given.

What always holds: a dialect only translates; what is sampled, recorded and refused is the same in each. A count is of
the tokens that the same call would be sampled after, and is no call: nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from quintain.failure import Failure, FailureKind, Stage
from quintain.rollout.gateway import anthropic, responses
from quintain.rollout.gateway.answers import DONE, Answer, chunks, completion, event
from quintain.rollout.gateway.chat import ChatRequest, read_chat
from quintain.rollout.gateway.errors import ApiError, error_of

Whole = Callable[[Answer, ChatRequest, int], Mapping[str, Any]]
Pieces = Callable[[Answer, ChatRequest, int], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API. `whole` and `pieces` take the answer, what was asked, and the time in seconds since 1970."""

    read: Callable[[bytes], ChatRequest]  # raises ApiError
    whole: Whole
    pieces: Pieces  # of a stream
    refused: Callable[[ApiError], Mapping[str, Any]]
    broken: Callable[[ApiError], bytes]  # where the stream has begun


def _chat_pieces(answer: Answer, asked: ChatRequest, created: int) -> Iterator[bytes]:
    yield from map(event, chunks(answer, created, include_usage=asked.include_usage))
    yield DONE


CHAT: Final = Dialect(
    read_chat,
    lambda answer, asked, created: completion(answer, created),
    _chat_pieces,
    error_of,
    lambda error: event(error_of(error)),
)
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        "chat/completions": CHAT,
        "responses": Dialect(
            responses.read_responses, responses.response, responses.events, error_of, responses.error_event
        ),
        "messages": Dialect(
            anthropic.read_messages, anthropic.message, anthropic.events, anthropic.error_of, anthropic.error_event
        ),
    }
)
"""By the page, under `/v1`, that speaks it."""


@dataclass(frozen=True, slots=True)
class Count:
    """A page that counts a prompt's tokens, in the API `dialect`."""

    dialect: Dialect
    read: Callable[[bytes], ChatRequest]  # raises ApiError
    told: Callable[[int], Mapping[str, Any]]


COUNTS: Final[Mapping[str, Count]] = MappingProxyType(
    {
        "responses/input_tokens": Count(
            DIALECTS["responses"],
            responses.read_responses,
            lambda tokens: {"object": "response.input_tokens", "input_tokens": tokens},
        ),
        "messages/count_tokens": Count(
            DIALECTS["messages"],
            partial(anthropic.read_messages, is_counted=True),
            lambda tokens: {"input_tokens": tokens},
        ),
    }
)
"""By the page, under `/v1`."""


def no_such_page(called: str) -> ApiError:
    """404: what was called, as "GET /v1/files", is none of the pages that are here."""
    message = f"{called[:80]} is not supported: use POST /v1/{', /v1/'.join((*DIALECTS, *COUNTS))}"
    return ApiError(Failure.of(FailureKind.REJECTED, Stage.REQUEST, message), 404, code="unknown_url")
