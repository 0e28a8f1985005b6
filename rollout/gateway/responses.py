"""OpenAI's `POST /v1/responses`, as a reading of chat completions: what is asked, and what is answered.

What always holds: an answer's items that come back as they were given are the message that they were, so conversations
are as token-exact as in chat. No response is kept: `previous_response_id` and items by reference are refused, and the
whole conversation is the input. What chat has no place for is an override with its name, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

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
from quintain.rollout.gateway.errors import ApiError, bad_request, error_of, unsupported

_RENAMED: Final = {"max_output_tokens": "max_tokens"}
_OURS: Final = (
    "instructions",
    "input",
    "tools",
    "text",
    "reasoning",
    "include",
    "truncation",
    "background",
    "tool_choice",
)
_KEPT: Final = "no response is kept here: send the whole conversation as input"
_TEXTS: Final = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def read_responses(text: bytes) -> ChatRequest:
    """The call that a request's body is. Raises ApiError (400) that names the field."""
    body = json_object(text)
    refuse_chats_own(body, ("model", "tools", "stream", "stream_options", "top_logprobs"), "responses")
    for name in ("previous_response_id", "conversation", "prompt"):
        if body.get(name) is not None:
            raise unsupported(name, f"{name}: {_KEPT}")
    if body.get("background"):
        raise unsupported("background", "background responses are not supported: leave it out")
    if "message.output_text.logprobs" in as_list(body, "include"):
        raise unsupported("include", "log-probabilities are in chat completions alone: leave them out of include")
    chat = {_RENAMED.get(name, name): value for name, value in body.items() if name not in _OURS}
    chat["messages"] = _messages(body)
    if tools := as_list(body, "tools"):
        chat["tools"] = [_tool(as_object(tool, f"tools[{i}]"), f"tools[{i}]") for i, tool in enumerate(tools)]
    if (choice := body.get("tool_choice")) is not None:
        chat["tool_choice"] = choice
    shape = as_object(body.get("text") or {}, "text")
    chat |= {"response_format": shape.get("format"), "verbosity": shape.get("verbosity")}
    if body.get("truncation") != "disabled":
        chat["truncation"] = body.get("truncation")
    chat["reasoning_effort"] = as_object(body.get("reasoning") or {}, "reasoning").get("effort")
    return chat_request(chat)


def response(answer: Answer, asked: ChatRequest, created: int) -> dict[str, Any]:
    """The whole answer; `created` in seconds since 1970."""
    (choice,) = answer.choices
    cut = choice.finish_reason == "length"
    return {
        "id": f"resp_{answer.session}_{choice.turn}",
        "object": "response",
        "created_at": created,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": _items(answer),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": choice.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + choice.tokens,
        },
        "quintain": {"turns": [choice.turn], "forks": [choice.fork], "ignored": list(answer.ignored)},
    }


def events(answer: Answer, asked: ChatRequest, created: int) -> Iterator[bytes]:
    """The answer as a stream's events: put together they are the whole."""
    whole = response(answer, asked, created)
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    said = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
    for index, item in enumerate(whole["output"]):
        said += _taken_apart(item, index)
    said.append((f"response.{whole['status']}", {"response": whole}))
    for number, (kind, data) in enumerate(said):
        yield named_event(kind, {**data, "sequence_number": number})


def error_event(error: ApiError) -> bytes:
    """A failure in a stream that has begun."""
    shown = {"code": error.code, "message": error.failure.message, "param": error.param}
    return named_event("error", {**shown, **error_of(error), "sequence_number": 0})  # clients read the one or the other


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation as chat has it: what an assistant thinks, says and calls in a row is one message."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(body, "input")
    found: list[dict[str, Any]] = []
    if body.get("instructions"):
        found.append({"role": "system", "content": as_text(body["instructions"], "instructions")})
    open_ = False  # whether the last message is an assistant's that may still say or call something
    for place, entry in enumerate(items):
        where = f"input[{place}]"
        item = as_object(entry, where)
        kind = item.get("type", "message")
        ours = kind in ("reasoning", "function_call") or (kind == "message" and item.get("role") == "assistant")
        if ours and not (open_ and (kind == "function_call" or not {"content", "tool_calls"} & found[-1].keys())):
            found.append({"role": "assistant"})
        if kind == "reasoning":
            thought = _joined(item.get("content") or item.get("summary") or "", where)
            found[-1][REASONING] = found[-1].get(REASONING, "") + thought
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            found[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
        elif kind == "function_call_output":
            said = _joined(item.get("output"), f"{where}.output")
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": said})
        elif kind == "message":
            said = _joined(item.get("content"), f"{where}.content")
            if ours:
                found[-1]["content"] = said
            else:
                found.append({"role": item.get("role"), "content": said})
        else:
            raise unsupported(
                where, f"{where} is of type {kind!r}: messages, reasoning and calls are supported; {_KEPT}"
            )
        open_ = ours
    return [{"content": "" if message["role"] == "assistant" else None, **message} for message in found]


def _joined(content: Any, where: str) -> str:
    """A text, or the texts of parts put together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{where} must be a text or a list of parts", param=where)
    said = ""
    for place, entry in enumerate(content):
        part = as_object(entry, f"{where}[{place}]")
        if part.get("type") not in _TEXTS:
            kind = part.get("type")
            raise unsupported(
                where, f"{where}[{place}] is of type {kind!r}: only text is supported, no images and no audio"
            )
        said += as_text(part.get("text"), f"{where}[{place}].text")
    return said


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise unsupported(where, f"{where} is of type {tool.get('type')!r}: only functions are supported")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _items(answer: Answer) -> list[dict[str, Any]]:
    (choice,) = answer.choices
    said, name = choice.message, f"{answer.session}_{choice.turn}"
    status = "incomplete" if choice.finish_reason == "length" else "completed"
    items: list[dict[str, Any]] = []
    if said.reasoning:
        thought = [{"type": "reasoning_text", "text": said.reasoning}]
        items.append({"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": thought, "status": status})
    if said.text or not said.tool_calls:
        text = [{"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}]
        items.append({"id": f"msg_{name}", "type": "message", "role": "assistant", "status": status, "content": text})
    for call in said.tool_calls:
        called = {"call_id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        items.append({"id": f"fc_{name}_{call.id}", "type": "function_call", "status": status, **called})
    return items


def _taken_apart(item: Mapping[str, Any], index: int) -> list[tuple[str, dict[str, Any]]]:
    """The events of one item."""
    at = {"item_id": item["id"], "output_index": index}
    held = "arguments" if item["type"] == "function_call" else "content"
    begun = {**item, "status": "in_progress", held: "" if held == "arguments" else []}
    said: list[tuple[str, dict[str, Any]]] = [("response.output_item.added", {"output_index": index, "item": begun})]
    if held == "arguments":
        kind = "response.function_call_arguments"
        said.append((f"{kind}.delta", {**at, "delta": item["arguments"]}))
        said.append((f"{kind}.done", {**at, "name": item["name"], "arguments": item["arguments"]}))
    else:
        part, more = item["content"][0], {**at, "content_index": 0}
        logprobs: dict[str, Any] = {"logprobs": []} if part["type"] == "output_text" else {}
        said.append(("response.content_part.added", {**more, "part": {**part, "text": ""}}))
        said.append((f"response.{part['type']}.delta", {**more, "delta": part["text"], **logprobs}))
        said.append((f"response.{part['type']}.done", {**more, "text": part["text"], **logprobs}))
        said.append(("response.content_part.done", {**more, "part": part}))
    said.append(("response.output_item.done", {"output_index": index, "item": item}))
    return said
