"""The function calls in a model's text, however it writes them. Pure; nothing is ever evaluated.

`read_calls` reads, in this order:
1. the elements of the first format of `FORMATS` whose mark stands in the text;
2. the whole text as JSON: OpenAI's `tool_calls` (or the message that has them), `{"name": …, "arguments": {…}}`,
   `{function: {parameter: value}}`, or a list of any of these;
3. the whole text as Python: `f(a=1)`, `[f(a=1), g.h(b="x")]`, or one call a line, parsed with `ast`;
4. the last fenced block of JSON or Python, as 2 or 3;
5. `Action: f` and `Action Input: {…}`, as ReAct has them, and JSON within prose that names a function on offer.
What is none of these makes no call, unless it starts or looks like one: then it is `UnreadableCall`. `split_calls`
reads one format only, as a chat model of that format means it, and keeps what was said beside the calls.

What always holds: sizes, depth and the number of calls are bounded before anything is parsed or walked (`call_syntax`).
Where a format writes values without quotes (XML, Qwen3-Coder, GLM), the parameter's schema says whether `5` is a number
or a text; without one it is JSON where it can be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from quintain.call_syntax import (
    CALL_START,
    MAX_CALLS,
    MAX_CHARS,
    Call,
    CallSyntaxError,
    bounded,
    call_of,
    calls_of_json,
    calls_of_python,
    json_value,
    name_of,
)
from quintain.fences import last_fence
from quintain.strict_json import STRICT

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each function on offer."""

_LANGUAGES: Final = frozenset({"", "json", "python", "py", "tool_call", "tool_code"})
_ACTION = re.compile(
    r"^Action:\s{0,4}([\w.-]{1,200})\s{0,4}\nAction Input:\s{0,4}(\{.*?\})\s*$", re.MULTILINE | re.DOTALL
)
_LOOKS_LIKE_A_CALL = re.compile(
    r"<[|｜/]?[^<>\n]{0,40}(?:tool|function|invoke|action)[^<>\n]{0,40}>|\[/?TOOL_|\bto=functions\.", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class UnreadableCall:
    """The text tries to call something, and why it cannot be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """A text split into what was said beside the calls, stripped, and the calls."""

    said: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """How a family of models writes calls: elements between two marks, and how one is read."""

    begin: str
    end: str
    read: Callable[[str, Schemas], list[Call]]


def read_calls(text: str, functions: Schemas | Iterable[str] = ()) -> list[Call] | UnreadableCall:
    """The calls in `text`, in order, none where it makes none; `functions` are those on offer."""
    schemas = functions if isinstance(functions, Mapping) else dict.fromkeys(functions, _NO_SCHEMA)
    try:
        return bounded(_read(text.strip(), schemas))
    except CallSyntaxError as error:
        return UnreadableCall(str(error))
    except (RecursionError, MemoryError):
        return UnreadableCall("it is nested too deeply")


def split_calls(text: str, format_name: str, functions: Schemas, *, closed: bool = True) -> Split:
    """`text` as a model of one format means it: an entry of `FORMATS`, "whole" (the whole text is calls) or "none".

    What cannot be read stays text, all of it, so that no call is made that the model did not write. `closed` says that
    the model ended its turn by itself: else an element without its end was cut off, and is no call.
    """
    try:
        if format_name == "whole":
            body = text.strip().removeprefix("<|python_tag|>")
            found = None if "```" in body or "<tool_call>" in body else _whole(body)
            return Split("", tuple(bounded(found))) if found else Split(text)
        if format_name == "none" or FORMATS[format_name].begin not in text:
            return Split(text)
        form = FORMATS[format_name]
        said, bodies, unfinished = _elements(text, form)
        if unfinished and not closed:
            return Split(text)
        calls = bounded([call for body in bodies for call in form.read(body, functions)])
        return Split(said.strip(), tuple(calls)) if calls else Split(text)
    except (CallSyntaxError, RecursionError, MemoryError):
        return Split(text)


def looks_like_a_call(text: str) -> bool:
    """Whether `text` has what call formats have, known ones or not: marks that name a tool, a function, an action."""
    return _LOOKS_LIKE_A_CALL.search(text) is not None


def _read(text: str, schemas: Schemas) -> list[Call]:
    text = text.replace("<|python_tag|>", "").replace("<|eom_id|>", "").strip()
    marks = [(text.find(form.begin), form) for form in FORMATS.values() if form.begin in text]
    if marks:
        _, form = min(marks, key=lambda mark: (mark[0], -len(mark[1].begin)))
        return [call for body in _elements(text, form)[1] for call in form.read(body, schemas)]
    found = _whole(text)
    if found is not None:
        return found
    block = last_fence(text, _LANGUAGES)
    if block is not None:
        found = _whole(block.strip())
        if found is not None:
            return found
    embedded = _embedded(text, schemas)
    if embedded:
        return embedded
    for name in schemas:
        if re.search(rf"(?<![\w.]){re.escape(name)}\s{{0,4}}\(|[\"'<=]\s?{re.escape(name)}\s?[\"'>/]", text):
            raise CallSyntaxError(f"it names a call of {name} within other text")
    if text[:1] in ("{", "["):
        raise CallSyntaxError("it begins like a call and is neither JSON nor Python")
    if looks_like_a_call(text):
        raise CallSyntaxError("it looks like a call, in a format that is not known")
    return []


def _embedded(text: str, schemas: Schemas) -> list[Call]:
    """ReAct's actions, or else the JSON objects within other text that call a function on offer."""
    calls = [call_of({"name": name, "arguments": json_value(given)}) for name, given in _ACTION.findall(text)]
    at, decoder = text.find("{"), STRICT
    for _ in range(MAX_CALLS if not calls and len(text) <= MAX_CHARS else 0):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            value, end = None, at + 1
        if isinstance(value, dict) and name_of(value) in schemas:
            calls.append(call_of(value))
        at = text.find("{", end)
    return calls


def _elements(text: str, form: Format) -> tuple[str, list[str], bool]:
    """The text beside the elements, what is in each, and whether the last one lacks its end."""
    said, *rest = text.split(form.begin)
    bodies, unfinished = [], False
    for part in rest:
        body, end, after = part.partition(form.end) if form.end else (part, "", "")
        bodies.append(body)
        unfinished = bool(form.end) and not end
        said += after
    if len(bodies) > MAX_CALLS:
        raise CallSyntaxError(f"it makes {len(bodies)} calls, and at most {MAX_CALLS} are read")
    return said, bodies, unfinished


def _whole(text: str) -> list[Call] | None:
    """The calls that the whole of `text` is; None where it does not begin like any."""
    if text.startswith("{") or re.match(r"\[\s{0,64}[{\]]", text):
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
            return calls_of_json([json_value(line) for line in lines])  # one object a line
        return calls_of_json(json_value(text))
    return calls_of_python(text) if CALL_START.match(text) else None


_NO_SCHEMA: Final[Mapping[str, Any]] = {}
_FUNCTION = re.compile(r"<function=([^>\n]{1,200})>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,200})>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_INVOKE = re.compile(r'<(?:\w+:)?invoke name="([^"\n]{1,200})">(.*?)</(?:\w+:)?invoke>', re.DOTALL)
_INVOKED = re.compile(r'<(?:\w+:)?parameter name="([^"\n]{1,200})"[^>]*>\n?(.*?)\n?</(?:\w+:)?parameter>', re.DOTALL)
_BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")


def _element(body: str, schemas: Schemas) -> list[Call]:
    """`<tool_call>` holds JSON (Hermes, Qwen), `<function=…>` (Qwen3-Coder, Nemotron), or keys and values (GLM)."""
    body = body.strip()
    if body.startswith("<function="):
        return [_typed(name, _PARAMETER.findall(inner), schemas) for name, inner in _FUNCTION.findall(body)]
    if "<arg_key>" in body or body in schemas:
        return [_typed(body.partition("<arg_key>")[0], _ARGUMENT.findall(body), schemas)]
    return calls_of_json(json_value(body))


def _invoked(body: str, schemas: Schemas) -> list[Call]:
    return [_typed(name, _INVOKED.findall(inner), schemas) for name, inner in _INVOKE.findall(body)]


def _typed(name: str, pairs: Iterable[tuple[str, str]], schemas: Schemas) -> Call:
    """A call whose values are written without quotes."""
    name = name.strip()
    properties = schemas.get(name, _NO_SCHEMA).get("properties", {})
    arguments: dict[str, Any] = {}
    for key, value in pairs:
        if key in arguments:
            raise CallSyntaxError("a key is given twice")
        schema = properties.get(key)
        text = isinstance(schema, Mapping) and schema.get("type") == "string"
        arguments[key] = value if text else _json_or_text(value)
    if not name:
        raise CallSyntaxError("a call has a name and arguments")
    return Call(name, arguments)


def _json_or_text(value: str) -> Any:
    try:
        return json_value(value)
    except CallSyntaxError:
        return value


def _json_calls(body: str, schemas: Schemas) -> list[Call]:
    return calls_of_json(json_value(body.strip()))


def _named_json(body: str, schemas: Schemas) -> list[Call]:
    """`name` and then its arguments as JSON, whatever mark or fence stands between (DeepSeek, Kimi, Mistral)."""
    body = body.strip()
    if body[:1] in ("[", "{"):
        return calls_of_json(json_value(body))
    name, brace, rest = body.partition("{")
    name = re.split(r"<[^<>]*>|\[[A-Z_]+\]|\s", name.removeprefix("function<｜tool▁sep｜>").strip())[0]
    name = re.sub(r"^functions\.|:\d+$", "", name)
    if not brace or not name:
        raise CallSyntaxError("a call has a name and arguments")
    return calls_of_json([{"name": name, "arguments": json_value("{" + rest.strip().removesuffix("```").strip())}])


def _gemma(body: str, schemas: Schemas) -> list[Call]:
    """`call:name{key:<|"|>text<|"|>,other:5}`: JSON but for the keys and the quotes."""
    name, brace, rest = body.strip().removeprefix("call:").partition("{")
    parts = ("{" + rest).split('<|"|>')
    parts = [_BARE_KEY.sub(r'\1"\2":', part) if i % 2 == 0 else json.dumps(part) for i, part in enumerate(parts)]
    if not brace:
        raise CallSyntaxError("a call has a name and arguments")
    return calls_of_json([{"name": name.strip(), "arguments": json_value("".join(parts))}])


def _python_calls(body: str, schemas: Schemas) -> list[Call]:
    found = calls_of_python(body.strip())
    if found is None:
        raise CallSyntaxError("it is no Python")
    return found


FORMATS: Final[Mapping[str, Format]] = {
    "hermes": Format("<tool_call>", "</tool_call>", _element),
    "minimax": Format("<minimax:tool_call>", "</minimax:tool_call>", _invoked),
    "invoke": Format("<function_calls>", "</function_calls>", _invoked),
    "muse": Format("<atem:function_calls>", "</atem:function_calls>", _invoked),
    "deepseek": Format("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", _named_json),
    "kimi": Format("<|tool_call_begin|>", "<|tool_call_end|>", _named_json),
    "mistral": Format("[TOOL_CALLS]", "", _named_json),
    "cohere": Format("<|START_ACTION|>", "<|END_ACTION|>", _json_calls),
    "gemma": Format("<|tool_call>", "<tool_call|>", _gemma),
    "lfm": Format("<|tool_call_start|>", "<|tool_call_end|>", _python_calls),
    "phi": Format("<|tool_call|>", "<|/tool_call|>", _json_calls),
    "jamba": Format("<tool_calls>", "</tool_calls>", _json_calls),
}
"""Elements of calls by the first family that used them; every key is a value of `rollout.tool_calls`."""
