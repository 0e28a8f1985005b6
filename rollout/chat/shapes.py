"""What a chat template takes, found by trying it once, and messages in the shape that it takes.

Templates are programs with opinions: some refuse a system message or two user messages in a row, some drop an
assistant's calls unless its content is missing, or want arguments as text. Nothing of this is guessed from names: each
shape is rendered with words that are looked for in the result. Where a template shows no tools, they are written out
in the messages, in Hermes' form. What always holds: the messages shown for a history begin with those shown for any
beginning of it that ends with an assistant's turn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from quintain.call_syntax import Call
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, FunctionSpec, Message, ToolCall, ToolSpec, system, user
from quintain.rollout.chat.tokens import shared_start
from quintain.tool_calls import FORMATS, split_calls

ASKED: Final = "zqAsked"
SAID: Final = "zqSaid"
VALUE: Final = "zqValue"
_TOLD, _RESULT = "zqTold", "zqResult"
PROBE_TOOL: Final = ToolSpec(
    FunctionSpec("zq_tool", "a probe", {"type": "object", "properties": {"zq_key": {"type": "string"}}})
)
_PROBE_CALL: Final = ToolCall("zqcall001", FunctionCall("zq_tool", json.dumps({"zq_key": VALUE})))
CALLED: Final = (
    user(ASKED),
    Message("assistant", None, (_PROBE_CALL,)),
    Message("tool", _RESULT, tool_call_id=_PROBE_CALL.id, name="zq_tool"),
)
"""A conversation in which the probe is called and answers."""
_HOW_TO_CALL: Final = (
    "You can call these functions, one JSON description a line:\n{tools}\n"
    "To call one, answer with its name and its arguments between tags, and wait for the result:\n"
    '<tool_call>{{"name": "function", "arguments": {{"parameter": "value"}}}}</tool_call>'
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How messages are shown to one template."""

    parts: bool = False  # content as a list of parts, as templates of vision models have it
    system: bool = True
    neighbours: bool = True  # two messages of one role in a row
    tools: bool = False
    empty: str | None = ""  # the content of an assistant that only calls
    arguments_as_text: bool = False


class Template:
    """The chat template of a tokenizer, or a `RendererFamily`, shown messages in the shape that it takes."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, dict(options)
        self.shape = Shape()
        self.shape = self._found()
        self.calls = self._format_of_calls() if self.shape.tools else "hermes"

    def text(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, generate: bool) -> str:
        """The rendering. Raises FailureError, of this episode, where the template refuses the messages."""
        try:
            return self._rendered(messages, tools, generate)
        except Exception as error:  # a template is a program: whatever it raises is a failure of this episode
            message = f"the chat template refused these messages: {type(error).__name__}: {error}"
            raise FailureError.of(FailureKind.REJECTED, Stage.RENDER, message) from error

    def tries(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, generate: bool = False) -> str:
        """The rendering, or nothing where the template refuses the messages."""
        try:
            return self.text(messages, tools, generate=generate)
        except FailureError:
            return ""

    def prompt_with(self, options: Mapping[str, Any]) -> str:
        """A prompt as further `options` of the template have it, or nothing where it refuses them."""
        mine, self._options = self._options, {**self._options, **options}
        try:
            return self.tries([user(ASKED)], generate=True)
        finally:
            self._options = mine

    def _rendered(self, messages: Sequence[Message], tools: Sequence[ToolSpec], generate: bool) -> str:
        by_template = self.shape.tools
        about_tools = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
        shown = list(messages) if by_template or not about_tools else _written_out(messages, tools)
        if not self.shape.system:
            shown = _without_system(shown)
        if not self.shape.neighbours:
            shown = _merged(shown)
        text: str = self._tokenizer.apply_chat_template(
            self._for_template(shown),
            tools=[described(tool, "function") for tool in tools] if tools and by_template else None,
            tokenize=False,
            add_generation_prompt=generate,
            **self._options,
        )
        return text

    def _for_template(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        names: dict[str | None, str] = {}
        shown = []
        for message in messages:
            names |= {call.id: call.function.name for call in message.tool_calls}
            entry = message.to_openai()
            content = message.text if message.content is not None else self.shape.empty
            entry["content"] = [{"type": "text", "text": content or ""}] if self.shape.parts else content
            if message.role == "tool":
                entry.setdefault("name", names.get(message.tool_call_id, "tool"))
            if message.reasoning is not None:
                entry |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.reasoning)
            for call in entry.get("tool_calls", ()) if not self.shape.arguments_as_text else ():
                with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is shown as it is
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            shown.append(entry)
        return shown

    def _found(self) -> Shape:
        for parts in (False, True):
            self.shape = Shape(parts=parts)
            first = self.tries([user(ASKED)], generate=True)
            if ASKED in first:
                break
        else:
            self.text([user(ASKED)], (), generate=True)  # what it raises says more
            raise QuintainError(
                "the chat template does not show what a user says: give the model another chat_template"
            )
        told = self.tries([system(_TOLD), user(ASKED)])
        shape = replace(self.shape, system=_TOLD in told and ASKED in told)
        shape = replace(shape, neighbours=self.tries([user(ASKED), user(_TOLD)]) != "")
        self.shape = replace(shape, tools=True)
        if PROBE_TOOL.function.name in self.tries([user(ASKED)], [PROBE_TOOL], generate=True):
            for empty, as_text in product(("", None), (False, True)):
                self.shape = replace(shape, tools=True, empty=empty, arguments_as_text=as_text)
                shown = self.tries(CALLED, [PROBE_TOOL], generate=True).rpartition(ASKED)[2]
                if all(word in shown for word in ("zq_tool", VALUE, _RESULT)):
                    return self.shape
        return replace(shape, tools=False)

    def _format_of_calls(self) -> str:
        """The format in which the template writes a call, found by reading one back."""
        begun, whole = self.tries(CALLED[:1], [PROBE_TOOL], generate=True), self.tries(CALLED[:2], [PROBE_TOOL])
        written = whole[shared_start(begun, whole) :]
        ends = {form.end for form in FORMATS.values()}
        for mark in map(str, self._tokenizer.added_tokens_decoder.values()):
            written = written.removesuffix("\n").removesuffix(mark) if mark not in ends else written
        schemas = {"zq_tool": PROBE_TOOL.function.parameters}
        wanted = (Call("zq_tool", {"zq_key": VALUE}),)
        found = (name for name in (*FORMATS, "whole") if split_calls(written, name, schemas).calls == wanted)
        return next(found, "none")


def _written_out(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """`messages` in plain roles, the tools in the system message."""
    shown = [_plain(message) for message in messages]
    if tools:
        told = _HOW_TO_CALL.format(tools="\n".join(json.dumps(described(tool), ensure_ascii=False) for tool in tools))
        if shown and shown[0].role == "system":
            shown[0] = system(f"{shown[0].text}\n\n{told}")
        else:
            shown.insert(0, system(told))
    return shown


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return user(f"<tool_response>{message.text}</tool_response>")
    calls = [
        f'<tool_call>{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}</tool_call>'
        for call in message.tool_calls
    ]
    return replace(message, content="\n".join([*filter(None, [message.text]), *calls]), tool_calls=())


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """What the system says, said by the next user."""
    shown: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.text)
        elif message.role == "user" and waiting:
            shown.append(user("\n\n".join([*waiting, message.text])))
            waiting = []
        else:
            shown.append(message)
    return [*shown, user("\n\n".join(waiting))] if waiting else shown


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message."""
    shown: list[Message] = []
    for message in messages:
        last = shown[-1] if shown else None
        if last is not None and last.role == message.role and message.role in ("user", "system"):
            shown[-1] = replace(last, content=f"{last.text}\n\n{message.text}")
        elif last is not None and last.role == message.role == "assistant" and not last.tool_calls:
            shown[-1] = replace(message, content="\n\n".join(filter(None, [last.text, message.text])))
        else:
            shown.append(message)
    return shown


def described(tool: ToolSpec, kind: str | None = None) -> dict[str, Any]:
    """`tool` as JSON, as OpenAI has it where its `kind` is given."""
    function = tool.function
    about = {"name": function.name, "description": function.description, "parameters": dict(function.parameters)}
    return {"type": kind, "function": about} if kind else about
