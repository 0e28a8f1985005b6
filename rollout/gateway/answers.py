"""What an agent is given: OpenAI's `chat.completion`, whole or as the chunks of a stream.

What always holds: the chunks put together are the whole. Beside OpenAI's fields there is `quintain`: the numbers of the
turns, why they extend nothing, and which sampling parameters were ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from quintain.messages import REASONING, Message

KEEP_ALIVE: Final = b": sampling\n\n"
"""A comment, which every reader of server-sent events skips."""
DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One sampled token, its bytes, which may be half a letter, and its log-probability."""

    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One sample as the agent gets it; `turn` is its number in the session, `fork` as in `Turn`."""

    turn: int
    message: Message
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None
    fork: str | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call."""

    session: str
    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    ignored: tuple[str, ...]

    @property
    def id(self) -> str:
        """Unique, and says where it is recorded."""
        return f"chatcmpl-{self.session}-{self.choices[0].turn}"


def completion(answer: Answer, created: int) -> dict[str, Any]:
    """The whole answer; `created` in seconds since 1970."""
    choices = [
        {
            "index": index,
            "message": {**choice.message.to_openai(), "refusal": None},
            "finish_reason": choice.finish_reason,
            "logprobs": _logprobs(choice),
        }
        for index, choice in enumerate(answer.choices)
    ]
    return {**_head(answer, "chat.completion", created), "choices": choices, "usage": _usage(answer)}


def chunks(answer: Answer, created: int, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The answer as a stream's chunks: role, content, tool calls, the end, for each choice; then the usage."""
    head = _head(answer, "chat.completion.chunk", created)
    usage = {"usage": None} if include_usage else {}
    for index, choice in enumerate(answer.choices):
        for delta in _deltas(choice):
            carries = choice.logprobs is not None and "role" not in delta and "tool_calls" not in delta
            logprobs = _logprobs(choice) if carries else None
            piece = {"index": index, "delta": delta, "finish_reason": None, "logprobs": logprobs}
            yield {**head, "choices": [piece], **usage}
        end = {"index": index, "delta": {}, "finish_reason": choice.finish_reason, "logprobs": None}
        yield {**head, "choices": [end], **usage}
    if include_usage:
        yield {**head, "choices": [], "usage": _usage(answer)}


def event(data: Mapping[str, Any]) -> bytes:
    """`data` as one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def named_event(kind: str, data: Mapping[str, Any]) -> bytes:
    """`data` as one event of the name, and type, `kind`."""
    return f"event: {kind}\n".encode() + event({"type": kind, **data})


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    message = choice.message
    yield {"role": "assistant", "content": None if message.tool_calls and not message.text else ""}
    if message.reasoning:
        yield {REASONING: message.reasoning}
    if message.text or choice.logprobs is not None:
        yield {"content": message.text}
    for index, call in enumerate(message.tool_calls):
        named = {"index": index, "id": call.id, "type": call.type}
        yield {"tool_calls": [{**named, "function": {"name": call.function.name, "arguments": ""}}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": call.function.arguments}}]}


def _head(answer: Answer, kind: str, created: int) -> dict[str, Any]:
    ours = {
        "turns": [choice.turn for choice in answer.choices],
        "forks": [choice.fork for choice in answer.choices],
        "ignored": list(answer.ignored),
    }
    return {"id": answer.id, "object": kind, "created": created, "model": answer.model, "quintain": ours}


def _usage(answer: Answer) -> dict[str, int]:
    sampled = sum(choice.tokens for choice in answer.choices)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": sampled,
        "total_tokens": answer.prompt_tokens + sampled,
    }


def _logprobs(choice: Choice) -> dict[str, Any] | None:
    if choice.logprobs is None:
        return None
    listed = [
        {
            "token": each.token.decode("utf-8", "replace"),
            "logprob": each.logprob,
            "bytes": list(each.token),
            "top_logprobs": [],
        }
        for each in choice.logprobs
    ]
    return {"content": listed, "refusal": None}
