"""How this model is shown tools and how it calls them: a `Renderer` with a tool-call parser around it.

Where the chat template shows tools, it does all of it. Where it does not (many small models), tools, calls and results
are written into the messages, in the form that the parser `hermes` reads. What always holds: the messages shown for a
history begin with those shown for any beginning of it, so that a prompt can be extended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from quintain.codec import Ints
from quintain.failure import FailureError
from quintain.messages import FunctionSpec, Message, ToolSpec, system, user
from quintain.rollout.chat.renderer import Rendered, Renderer
from quintain.rollout.chat.tool_calls import ParsedOutput, parser_of

_PROBE: Final = (ToolSpec(FunctionSpec("probe", "says whether tools are shown", {"type": "object"})),)

_HOW_TO_CALL: Final = (
    "You can call these functions, one JSON description a line:\n{tools}\n"
    "To call one, answer with its name and its arguments between tags, and wait for the result:\n"
    '<tool_call>{{"name": "function", "arguments": {{"parameter": "value"}}}}</tool_call>'
)


class Dialect:
    """Renders and reads the messages of one model; `calls` names the parser of tool calls."""

    def __init__(self, renderer: Renderer, calls: str = "hermes") -> None:
        self.renderer = renderer
        self._parse = parser_of(calls)
        self._template_shows_tools: bool | None = None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a turn."""
        return self.renderer.stop_ids

    def first(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ints:
        """The prompt ids [P] of `messages`, from the beginning."""
        return self.renderer.first(self._shown(messages, tools), self._offered(tools))

    def extend(
        self, ids: Ints, messages: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> Rendered:
        """The prompt after `ids`, whose messages are `messages`, and then `new` (`Renderer.extend`)."""
        shown = self._shown([*messages, *new], tools)
        before = len(shown) - len(new)
        return self.renderer.extend(ids, shown[:before], shown[before:], self._offered(tools))

    def text(self, ids: Ints) -> str:
        """What sampled ids say, without the end of the turn."""
        return self.renderer.parse(ids).text

    def read(self, text: str, tools: Sequence[ToolSpec]) -> ParsedOutput:
        """What was said and called."""
        return self._parse(text, [tool.function.name for tool in tools])

    def _offered(self, tools: Sequence[ToolSpec]) -> Sequence[ToolSpec]:
        return tools if tools and self._by_template() else ()

    def _shown(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        about_tools = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
        if about_tools and not self._by_template():
            return _written_out(messages, tools)
        return [_with_text(message) for message in messages]

    def _by_template(self) -> bool:
        if self._template_shows_tools is None:
            asked = [user("?")]
            try:
                shown = self.renderer.first(asked, _PROBE)
                self._template_shows_tools = not np.array_equal(shown, self.renderer.first(asked))
            except FailureError:  # a template that refuses tools does not show them
                self._template_shows_tools = False
        return self._template_shows_tools


def _with_text(message: Message) -> Message:
    """Templates may add to the content, and None cannot be added to."""
    return message if message.content is not None else replace(message, content="")


def _written_out(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """`messages` in plain roles, the tools in the system message."""
    shown = [_plain(message) for message in messages]
    if tools:
        lines = "\n".join(_described(tool) for tool in tools)
        told = _HOW_TO_CALL.format(tools=lines)
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


def _described(tool: ToolSpec) -> str:
    function = tool.function
    about = {"name": function.name, "description": function.description, "parameters": dict(function.parameters)}
    return json.dumps(about, ensure_ascii=False)
