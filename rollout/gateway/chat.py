"""What an agent asks for: a body of OpenAI's `POST /v1/chat/completions`, read into frozen types.

What always holds: every field of the body is understood, neutral, or refused with its name; none is skipped because
nobody knew it. Text only: images, audio and files are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from quintain.messages import FunctionCall, FunctionSpec, Message, Role, ToolCall, ToolSpec
from quintain.nearest import did_you_mean
from quintain.rollout.gateway.errors import ApiError, bad_request, unsupported
from quintain.rollout.gateway.wishes import GRANTED, NEUTRAL, wishes_of

MAX_STOPS: Final = 16

_READ: Final = frozenset(
    {
        "messages", "model", "tools", "n", "stop", "stream", "stream_options", "logprobs", "top_logprobs",
        "max_tokens", "max_completion_tokens", *GRANTED, *NEUTRAL,
    }
)  # fmt: skip
_HARMLESS: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options",
    }
)  # fmt: skip
"""They change nothing about what is sampled."""
_ROLES: Final[Mapping[str, Role]] = {**{role: role for role in get_args(Role)}, "developer": "system"}
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call. `wishes` is what it asks of the sampling beyond the neutral, `may_call` whether calls are read."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    may_call: bool
    choices: int
    max_tokens: int | None
    stops: tuple[str, ...]
    logprobs: bool
    stream: bool
    include_usage: bool
    wishes: Mapping[str, Any]


def read_chat(text: bytes) -> ChatRequest:
    """The call that a request's body is. Raises ApiError (400) that names the field."""
    try:
        body = json.loads(text)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the request must be JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request(f"the request must be a JSON object, not {type(body).__name__}", code="invalid_json")
    for name, value in body.items():
        if name not in _READ and name not in _HARMLESS and value is not None:
            raise unsupported(name, f"{name!r} is not supported{did_you_mean(name, _READ)}; leave it out")
    _text_only(body)
    tools = tuple(_tool(entry, place) for place, entry in enumerate(_listed(body, "tools")))
    strict = any(entry["function"].get("strict") for entry in body.get("tools") or ())
    options = _object(body.get("stream_options") or {}, "stream_options")
    return ChatRequest(
        model=_text(body.get("model"), "model"),
        messages=_messages(body),
        tools=tools,
        may_call=bool(tools) and body.get("tool_choice") != "none",
        choices=_count(body, "n") or 1,
        max_tokens=_smallest(_count(body, "max_tokens"), _count(body, "max_completion_tokens")),
        stops=_stops(body.get("stop")),
        logprobs=_flag(body, "logprobs"),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        wishes=wishes_of(body, strict),
    )


def _text_only(body: Mapping[str, Any]) -> None:
    if body.get("top_logprobs"):
        raise unsupported("top_logprobs", "only the log-probability of the sampled token is known: top_logprobs is 0")


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = tuple(_message(entry, f"messages[{i}]") for i, entry in enumerate(_listed(body, "messages")))
    if not messages:
        raise bad_request("messages must be a list of at least one message", param="messages")
    return messages


def _message(entry: Any, where: str) -> Message:
    entry = _object(entry, where)
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}", param=f"{where}.role")
    for name, value in entry.items():
        if name not in _MESSAGE_FIELDS and value not in (None, [], {}):
            raise unsupported(f"{where}.{name}", f"{where}.{name} is not supported; leave it out")
    calls = tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(_listed(entry, "tool_calls", where)))
    content = _content(entry.get("content"), f"{where}.content")
    if calls and role != "assistant":
        raise bad_request(f"only an assistant calls tools: {where} is of role {role!r}", param=f"{where}.tool_calls")
    if content is None and not calls and role != "assistant":
        raise bad_request(f"{where}.content must be a text", param=f"{where}.content")
    answers, name = entry.get("tool_call_id"), entry.get("name")
    if role == "tool":
        answers = _text(answers, f"{where}.tool_call_id")
    if name is not None:
        name = _text(name, f"{where}.name")
    return Message(_ROLES[role], content, calls, answers, name)


def _content(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"{where} must be a text or a list of parts", param=where)
    texts = []
    for place, part in enumerate(value):
        part = _object(part, f"{where}[{place}]")
        if part.get("type") != "text":
            raise unsupported(where, f"{where}[{place}] is of type {part.get('type')!r}: only text is supported")
        texts.append(_text(part.get("text"), f"{where}[{place}].text"))
    return "".join(texts)


def _call(value: Any, where: str) -> ToolCall:
    entry = _object(value, where)
    function = _object(entry.get("function"), f"{where}.function")
    name = _text(function.get("name"), f"{where}.function.name")
    arguments = _text(function.get("arguments"), f"{where}.function.arguments")
    return ToolCall(_text(entry.get("id"), f"{where}.id"), FunctionCall(name, arguments))


def _tool(value: Any, place: int) -> ToolSpec:
    where = f"tools[{place}]"
    entry = _object(value, where)
    if entry.get("type") != "function":
        raise unsupported(where, f"{where} is of type {entry.get('type')!r}: only functions are supported")
    function = _object(entry.get("function"), f"{where}.function")
    name = _text(function.get("name"), f"{where}.function.name")
    description = function.get("description") or ""
    parameters = _object(function.get("parameters") or {}, f"{where}.function.parameters")
    return ToolSpec(FunctionSpec(name, _text(description, f"{where}.function.description"), parameters))


def _stops(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(stop, str) and stop for stop in listed):
        raise bad_request("stop must be a text or a list of texts, none of them empty", param="stop")
    if len(listed) > MAX_STOPS:
        raise bad_request(f"at most {MAX_STOPS} stop strings are watched for, got {len(listed)}", param="stop")
    return tuple(listed)


def _count(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise bad_request(f"{name} must be a whole number of at least 1, not {value!r}", param=name)
    return value


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{name} must be true or false, not {value!r}", param=name)
    return bool(value)


def _listed(body: Mapping[str, Any], name: str, within: str = "") -> list[Any]:
    value, where = body.get(name), f"{within}.{name}".lstrip(".")
    if value is not None and not isinstance(value, list):
        raise bad_request(f"{where} must be a list, not {type(value).__name__}", param=where)
    return value or []


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _no("an object", value, where)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _no("a text", value, where)
    return value


def _no(expected: str, value: Any, where: str) -> ApiError:
    return bad_request(f"{where} must be {expected}, not {type(value).__name__}", param=where)
