"""What an agent asks for: a body of OpenAI's `POST /v1/chat/completions`, read into frozen types.

What always holds: every field of the body is understood, neutral, or an override with its name; none is skipped because
nobody knew it. Text only: images, audio and files in messages are refused.

The run's sampling is authoritative, because a trainer corrects for it and for no other. Nothing that would change what
is sampled is ignored silently: the session says (`Overrides`) whether that is refused, ignored and counted, or, where
the engine can, granted. A limit of tokens overrides nothing: the smallest one holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from quintain.messages import REASONING, FunctionCall, FunctionSpec, Message, Role, ToolCall, ToolSpec, parts_of
from quintain.nearest import did_you_mean
from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway.errors import ApiError, bad_request, unsupported
from quintain.rollout.gateway.wire import Overrides

MAX_STOPS: Final = 16
MAX_SHOWN_CHARS: Final = 200
NEUTRAL: Final[Mapping[str, Sequence[Any]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "reasoning_effort": (),
    "verbosity": (),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
}
"""What would change the sampling in ways no engine of ours does, and the values that change nothing."""

GRANTED: Final = ("temperature", "top_p", "top_k", "seed")

_READ: Final = frozenset(
    {
        "messages", "model", "tools", "n", "stop", "stream", "stream_options", "logprobs", "top_logprobs",
        "max_tokens", "max_completion_tokens", *GRANTED, *NEUTRAL,
    }
)  # fmt: skip
_HARMLESS: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "client_metadata",
    }
)  # fmt: skip
"""They change nothing about what is sampled."""
_ROLES: Final[Mapping[str, Role]] = {**{role: role for role in get_args(Role)}, "developer": "system"}
_THOUGHTS: Final = (REASONING, "reasoning")
"""Where clients have what a model thought, the first that says something."""
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", *_THOUGHTS})
_LEAVE_OUT: Final = "leave it out, or open the session with overrides 'ignore' to have it ignored and counted"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call. `overrides` is what it asks of the sampling beyond the neutral, `may_call` whether calls are read."""

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
    overrides: Mapping[str, Any]
    thoughts: bool = True  # whether the answer shows what was thought


@dataclass(frozen=True, slots=True)
class Settled:
    """How a call is sampled; `seed` is the agent's where granted; `ignored` are the parameters that are not met."""

    sampling: Sampling
    seed: int | None
    ignored: tuple[str, ...]


def read_chat(text: bytes) -> ChatRequest:
    """The call that a request's body is. Raises ApiError (400) that names the field."""
    return chat_request(json_object(text))


def refuse_chats_own(body: Mapping[str, Any], allowed: Collection[str], api: str) -> None:
    """Raise ApiError (400) for a field of chat completions in a call to `api`, which does not have it."""
    for name in sorted(body.keys() & _READ - {*GRANTED, *NEUTRAL, *allowed}):
        raise unsupported(name, f"{name} is a field of chat completions, and not of {api}: leave it out")


def json_object(text: bytes) -> dict[str, Any]:
    """The object that a request's body is. Raises ApiError (400)."""
    try:
        body = json.loads(text)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the request must be JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request(f"the request must be a JSON object, not {type(body).__name__}", code="invalid_json")
    return body


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """The call that `body`, in the format of chat completions, asks for. Raises ApiError (400) that names the field."""
    if body.get("top_logprobs"):
        raise unsupported("top_logprobs", "only the log-probability of the sampled token is known: top_logprobs is 0")
    tools = tuple(_tool(entry, place) for place, entry in enumerate(as_list(body, "tools")))
    strict = any(entry["function"].get("strict") for entry in body.get("tools") or ())
    options = as_object(body.get("stream_options") or {}, "stream_options")
    return ChatRequest(
        model=as_text(body.get("model"), "model"),
        messages=_messages(body),
        tools=tools,
        may_call=bool(tools) and body.get("tool_choice") != "none",
        choices=_count(body, "n") or 1,
        max_tokens=_smallest(_count(body, "max_tokens"), _count(body, "max_completion_tokens")),
        stops=_stops(body.get("stop")),
        logprobs=_flag(body, "logprobs"),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        overrides=_overrides_of(body, strict),
    )


def settle(asked: Mapping[str, Any], base: Sampling, policy: Overrides) -> Settled:
    """The sampling of a call. Raises ApiError (400) for what is not met and may not be ignored."""
    own = {"temperature": base.temperature, "top_p": base.top_p, "top_k": base.top_k}
    differing = {name: value for name, value in asked.items() if name not in own or own[name] != value}
    if policy is Overrides.IGNORE:
        return Settled(base, None, tuple(differing))
    for name, value in differing.items():
        if name not in GRANTED:
            asked_for = f"{name}={value!r} is not supported{did_you_mean(name, _READ - {name})}"
            raise unsupported(name, f"{asked_for[:MAX_SHOWN_CHARS]}; {_LEAVE_OUT}")
        if policy is Overrides.REFUSE:
            runs = f"the run samples with {name} {own[name]:g}" if name in own else "the run draws its own seeds"
            raise unsupported(name, f"{name}={value!r} is not granted: {runs}; {_LEAVE_OUT}, or 'allow' to grant it")
    changed = {name: value for name, value in differing.items() if name in own}
    return Settled(replace(base, **changed), differing.get("seed"), ())


def _overrides_of(body: Mapping[str, Any], strict_tools: bool) -> dict[str, Any]:
    """What `body` asks for beyond the neutral, by the parameter's name. Raises ApiError for what is malformed."""
    found = {name: body[name] for name in GRANTED if body.get(name) is not None}
    if found.get("top_k") == -1:  # vLLM's way to say that it is off
        found["top_k"] = 0
    for name, value in found.items():
        _check(name, value)
    for name, neutral in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            found[name] = body[name]
    if strict_tools:
        found["tools.function.strict"] = True
    found |= {name: value for name, value in body.items() if name not in _READ | _HARMLESS and value is not None}
    for message in body["messages"]:
        fields = message.items()
        found |= {f"messages.{k}": v for k, v in fields if k not in _MESSAGE_FIELDS and v not in (None, [], {})}
    return found


def _check(name: str, value: Any) -> None:
    whole = name in ("top_k", "seed")
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise bad_request(f"{name} must be a number, not {value!r}", param=name)
    low, high = {"temperature": (0, 2), "top_p": (0, 1), "top_k": (0, 2**31), "seed": (-(2**63), 2**63)}[name]
    if not low <= value <= high or (name == "top_p" and value == 0):
        raise bad_request(f"{name} must be from {low} to {high}, not {value!r}", param=name)


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = tuple(_message(entry, f"messages[{i}]") for i, entry in enumerate(as_list(body, "messages")))
    if not messages:
        raise bad_request("messages must be a list of at least one message", param="messages")
    return messages


def _message(entry: Any, where: str) -> Message:
    entry = as_object(entry, where)
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}", param=f"{where}.role")
    calls = tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(as_list(entry, "tool_calls", where)))
    content = _content(entry.get("content"), f"{where}.content")
    if calls and role != "assistant":
        raise bad_request(f"only an assistant calls tools: {where} is of role {role!r}", param=f"{where}.tool_calls")
    if content is None and not calls and role != "assistant":
        raise bad_request(f"{where}.content must be a text", param=f"{where}.content")
    answers, name = entry.get("tool_call_id"), entry.get("name")
    if role == "tool":
        answers = as_text(answers, f"{where}.tool_call_id")
    if name is not None:
        name = as_text(name, f"{where}.name")
    field = next((field for field in _THOUGHTS if entry.get(field) is not None), REASONING)
    thought = as_text(entry[field], f"{where}.{field}") if entry.get(field) is not None else None
    return Message(_ROLES[role], content, calls, answers, name, thought)


def _content(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"{where} must be a text or a list of parts", param=where)
    try:
        return "".join(part.text for part in parts_of(value))
    except ValueError as error:
        raise unsupported(where, f"{where}: {error}") from None


def _call(value: Any, where: str) -> ToolCall:
    entry = as_object(value, where)
    function = as_object(entry.get("function"), f"{where}.function")
    name = as_text(function.get("name"), f"{where}.function.name")
    arguments = as_text(function.get("arguments"), f"{where}.function.arguments")
    return ToolCall(as_text(entry.get("id"), f"{where}.id"), FunctionCall(name, arguments))


def _tool(value: Any, place: int) -> ToolSpec:
    where = f"tools[{place}]"
    entry = as_object(value, where)
    if entry.get("type") != "function":
        raise unsupported(where, f"{where} is of type {entry.get('type')!r}: only functions are supported")
    function = as_object(entry.get("function"), f"{where}.function")
    name = as_text(function.get("name"), f"{where}.function.name")
    description = function.get("description") or ""
    parameters = as_object(function.get("parameters") or {}, f"{where}.function.parameters")
    return ToolSpec(FunctionSpec(name, as_text(description, f"{where}.function.description"), parameters))


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


def as_list(body: Mapping[str, Any], name: str, within: str = "") -> list[Any]:
    """The list `name` of `body`, empty where there is none. Raises ApiError."""
    value, where = body.get(name), f"{within}.{name}".lstrip(".")
    if value is not None and not isinstance(value, list):
        raise bad_request(f"{where} must be a list, not {type(value).__name__}", param=where)
    return value or []


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value`, which is at `where` in the request. Raises ApiError where it is no object."""
    if not isinstance(value, dict):
        raise _no("an object", value, where)
    return value


def as_text(value: Any, where: str) -> str:
    """`value`, which is at `where` in the request. Raises ApiError where it is no text."""
    if not isinstance(value, str):
        raise _no("a text", value, where)
    return value


def _no(expected: str, value: Any, where: str) -> ApiError:
    return bad_request(f"{where} must be {expected}, not {type(value).__name__}", param=where)
