"""Chat messages and tools, field for field in OpenAI's chat format, so any client can speak to us.

Everything here is frozen; sequences are tuples, so a message can be shared between turns and processes. What other
libraries write for "nothing" (`tool_calls: null` and the like) is read as nothing, wherever a message is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """The function an assistant calls; `arguments` is the JSON text exactly as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by the assistant."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function on offer; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool on offer to the policy."""

    function: FunctionSpec
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a message's content that is text."""

    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `content` is None only where an assistant does nothing but call tools.

    `content` is what was said, whole or in parts; `reasoning` is what the model thought, apart from what it said.
    Raises ValueError for a part that is no text: images and audio have no place yet.
    """

    role: Role
    content: str | tuple[TextPart, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls or ()))
        if isinstance(self.content, (list, tuple)):
            object.__setattr__(self, "content", parts_of(self.content))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Data that describes a message is read as the constructor reads it."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_plainly, handler(source))

    @property
    def text(self) -> str:
        """What was said, empty where nothing was."""
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def to_openai(self) -> dict[str, Any]:
        """This message as OpenAI's JSON object, without the fields it does not use."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if isinstance(self.content, tuple):
            out["content"] = [{"type": part.type, "text": part.text} for part in self.content]
        if self.reasoning is not None:
            out[REASONING] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": c.id, "type": c.type, "function": {"name": c.function.name, "arguments": c.function.arguments}}
                for c in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out


REASONING: Final = "reasoning_content"
"""Where servers and chat templates have what a model thought; OpenAI's own format has no place for it."""


def parts_of(content: list[Any] | tuple[Any, ...]) -> tuple[TextPart, ...]:
    """The parts of a message's content. Raises ValueError that names the first that is no text."""
    return tuple(_part(part, place) for place, part in enumerate(content))


def _part(part: Any, place: int) -> TextPart:
    if isinstance(part, TextPart):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"content[{place}] is of type {kind!r}: only text is supported, no images and no audio")
    return TextPart(text)


def _plainly(data: Any) -> Any:
    """`data` without what says nothing, its content in parts."""
    if not isinstance(data, Mapping):
        return data
    said = {name: value for name, value in data.items() if value is not None}
    return said | {"content": parts_of(said["content"])} if isinstance(said.get("content"), (list, tuple)) else said


def system(content: str) -> Message:
    """A system message."""
    return Message("system", content)


def user(content: str) -> Message:
    """A user message."""
    return Message("user", content)


def assistant(content: str) -> Message:
    """An assistant message."""
    return Message("assistant", content)
