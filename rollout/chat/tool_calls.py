"""Tool calls in what a model says: small parsers, chosen by name.

A parser is a pure function of the text and the names on offer. What it cannot read stays text: a malformed call is
the agent's to answer, and it never becomes a call that the model did not make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from quintain.failure import QuintainError
from quintain.messages import FunctionCall
from quintain.nearest import one_of
from quintain.tool_calls import UnreadableCall, read_calls


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """A text split into what was said and what was called."""

    content: str | None
    calls: tuple[FunctionCall, ...] = ()


Parser = Callable[[str, Collection[str]], ParsedOutput]
"""(text, names of the tools on offer) -> what it says."""

_ELEMENT = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


def hermes(text: str, names: Collection[str]) -> ParsedOutput:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` anywhere in the text: Hermes, Qwen and their kin."""
    if "<tool_call>" not in text:
        return ParsedOutput(text)
    return _said(text, names, _ELEMENT.sub("", text).strip())


def whole(text: str, names: Collection[str]) -> ParsedOutput:
    """The whole text is calls, as JSON or as Python: Llama 3 and its kin."""
    if "<tool_call>" in text or "```" in text:
        return ParsedOutput(text)
    return _said(text, names, "")


def none(text: str, names: Collection[str]) -> ParsedOutput:
    """Nothing is ever a call."""
    return ParsedOutput(text)


PARSERS: Final[Mapping[str, Parser]] = {"hermes": hermes, "whole": whole, "none": none}


def parser_of(name: str) -> Parser:
    """The parser called `name`. Raises QuintainError where there is none."""
    if name not in PARSERS:
        raise QuintainError(f"there is no tool-call parser {name!r}{one_of(name, PARSERS)}")
    return PARSERS[name]


def _said(text: str, names: Collection[str], rest: str) -> ParsedOutput:
    calls = read_calls(text, names)
    if isinstance(calls, UnreadableCall) or not calls:
        return ParsedOutput(text)
    return ParsedOutput(
        rest or None, tuple(FunctionCall(c.name, json.dumps(c.arguments, ensure_ascii=False)) for c in calls)
    )
