"""Anthropic's `POST /v1/messages`, as a reading of chat completions: what is asked, and what is answered.

What always holds: a message of ours that comes back as it was given is the message that it was, so conversations are as
token-exact as in chat; what Anthropic's format has no other place for in chat is an override with its name, or refused.
Blocks of thinking are given where thinking was asked for, and taken back whether signed or not: a signature is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from quintain.codec import to_builtins
from quintain.messages import REASONING
from quintain.rollout.gateway.answers import Answer, named_event
from quintain.rollout.gateway.chat import (
    ChatRequest,
    as_list,
    as_object,
    as_text,
    chat_request,
    json_object,
    refuse_chats_own,
)
from quintain.rollout.gateway.errors import ApiError, bad_request, unsupported

_RENAMED: Final = {"stop_sequences": "stop"}
_SAME: Final = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k", "metadata", "service_tier")
_HARMLESS: Final = ("cache_control", "citations", "is_error", "id", "caller")
"""Of blocks and tools: they change nothing about what is sampled."""
_STOPS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES: Final = {"auto": "auto", "none": "none", "any": "required"}
_ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def read_messages(text: bytes, *, is_counted: bool = False) -> ChatRequest:
    """The call that a request's body is, or one whose tokens are only counted. Raises ApiError (400) that names the
    field.
    """
    body = json_object(text)
    refuse_chats_own(body, ("messages", "tools", *_SAME), "messages")
    if body.get("max_tokens") is None and not is_counted:
        raise bad_request("max_tokens is required", param="max_tokens")
    known = {*_SAME, *_RENAMED, "messages", "system", "tools", "tool_choice", "thinking"}
    chat: dict[str, Any] = {name: body[name] for name in body if name in _SAME or name not in known}
    chat |= {ours: body[name] for name, ours in _RENAMED.items() if name in body}
    system = _joined(body["system"], "system") if body.get("system") else ""
    chat["messages"] = [{"role": "system", "content": system}] if system else []
    for place, entry in enumerate(as_list(body, "messages")):
        chat["messages"] += _messages(as_object(entry, f"messages[{place}]"), f"messages[{place}]")
    if chat["messages"] and chat["messages"][-1]["role"] == "assistant":
        raise unsupported("messages", "the last message is an assistant's: an answer that is begun is not gone on with")
    if tools := as_list(body, "tools"):
        chat["tools"] = [
            _tool(as_object(tool, f"tools[{place}]"), f"tools[{place}]") for place, tool in enumerate(tools)
        ]
    if (choice := body.get("tool_choice")) is not None:
        kind = as_object(choice, "tool_choice").get("type")
        chat["tool_choice"] = _CHOICES.get(kind, choice) if isinstance(kind, str) else choice
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    thinking = as_object(body.get("thinking") or {"type": "disabled"}, "thinking")
    return replace(chat_request(chat), thoughts=thinking.get("type") in ("enabled", "adaptive"))


def message(answer: Answer, asked: ChatRequest, created: int) -> dict[str, Any]:
    """The whole answer."""
    (choice,) = answer.choices
    return {
        **_head(answer),
        "content": _blocks(answer, asked),
        "stop_reason": _STOPS[choice.finish_reason],
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": choice.tokens},
        "quintain": {"turns": [choice.turn], "forks": [choice.fork], "ignored": list(answer.ignored)},
    }


def events(answer: Answer, asked: ChatRequest, created: int) -> Iterator[bytes]:
    """The answer as a stream's events: put together they are the whole."""
    whole = message(answer, asked, created)
    begun = {"input_tokens": answer.prompt_tokens, "output_tokens": 0}
    yield named_event("message_start", {"message": {**whole, "content": [], "stop_reason": None, "usage": begun}})
    for index, block in enumerate(whole["content"]):
        empty, deltas = _taken_apart(block)
        yield named_event("content_block_start", {"index": index, "content_block": empty})
        for delta in deltas:
            yield named_event("content_block_delta", {"index": index, "delta": delta})
        yield named_event("content_block_stop", {"index": index})
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield named_event("message_delta", {"delta": end, "usage": {"output_tokens": answer.choices[0].tokens}})
    yield named_event("message_stop", {})


def error_of(error: ApiError) -> dict[str, Any]:
    """A refusal in Anthropic's shape, with our `failure` beside it."""
    kind = _ERRORS.get(error.status or 500, "api_error" if (error.status or 500) >= 500 else "invalid_request_error")
    shown = {"type": kind, "message": error.failure.message}
    return {"type": "error", "error": shown, "failure": to_builtins(error.failure)}


def error_event(error: ApiError) -> bytes:
    """A failure in a stream that has begun."""
    return named_event("error", error_of(error))


def _messages(entry: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """One message of Anthropic's as chat has it: results of tools are messages of their own."""
    role, content = entry.get("role"), entry.get("content")
    if role not in ("user", "assistant", "system"):
        raise bad_request(f"{where}.role must be user, assistant or system, not {role!r}", param=f"{where}.role")
    rest = {name: value for name, value in entry.items() if name not in ("role", "content")}
    if isinstance(content, str):
        return [{"role": role, "content": content, **rest}]
    blocks = [as_object(b, f"{where}.content[{i}]") for i, b in enumerate(as_list(entry, "content", where))]
    if role == "assistant":
        return [{**_assistant(blocks, where), **rest}]
    found: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        if block.get("type") == "tool_result":
            call = as_text(block.get("tool_use_id"), f"{at}.tool_use_id")
            said = _joined(block.get("content") or "", f"{at}.content")
            found.append({"role": "tool", "tool_call_id": call, "content": said})
        elif found and found[-1]["role"] == role:
            found[-1]["content"] += _text_of(block, at)
        else:
            found.append({"role": role, "content": _text_of(block, at)})
    return found or [{"role": role, "content": ""}]


def _assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    said, thought, calls = "", [], []
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        if block.get("type") == "thinking":
            thought.append(as_text(block.get("thinking"), f"{at}.thinking"))
        elif block.get("type") == "tool_use":
            arguments = json.dumps(as_object(block.get("input"), f"{at}.input"), ensure_ascii=False)
            calls.append({"id": block.get("id"), "function": {"name": block.get("name"), "arguments": arguments}})
        else:
            said += _text_of(block, at)
    return {
        "role": "assistant",
        "content": said,
        **({REASONING: "".join(thought)} if thought else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _joined(content: Any, where: str) -> str:
    """A text, or text blocks put together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{where} must be a text or a list of blocks", param=where)
    return "".join(_text_of(as_object(block, f"{where}[{i}]"), f"{where}[{i}]") for i, block in enumerate(content))


def _text_of(block: Mapping[str, Any], where: str) -> str:
    if block.get("type") != "text":
        raise unsupported(where, f"{where} is of type {block.get('type')!r}: text, thinking and tools are supported")
    return as_text(block.get("text"), f"{where}.text")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise unsupported(where, f"{where} is of type {tool['type']!r}: tools of a server's are not supported")
    known = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": {**known, "strict": tool.get("strict")}}


def _head(answer: Answer) -> dict[str, Any]:
    name = f"msg_{answer.session}_{answer.choices[0].turn}"
    return {"id": name, "type": "message", "role": "assistant", "model": answer.model, "stop_sequence": None}


def _blocks(answer: Answer, asked: ChatRequest) -> list[dict[str, Any]]:
    said = answer.choices[0].message
    blocks: list[dict[str, Any]] = []
    if said.reasoning and asked.thoughts:
        blocks.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
    if said.text or not (blocks or said.tool_calls):
        blocks.append({"type": "text", "text": said.text})
    for call in said.tool_calls:
        given = json.loads(call.function.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.function.name, "input": given})
    return blocks


def _taken_apart(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and what is added to it."""
    if block["type"] == "tool_use":
        added = json.dumps(block["input"], ensure_ascii=False)
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": added}]
    if block["type"] == "thinking":
        deltas = [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": ""},
        ]
        return {**block, "thinking": ""}, deltas
    return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
