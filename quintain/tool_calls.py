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

What always holds: sizes, depth and the number of calls are bounded before anything is parsed or walked; a key given
twice, NaN, infinity, a positional argument or an expression is `UnreadableCall`. In Python's syntax a bare name, and a
call without keywords, stand for a variable, which is its own text, as in BFCL. Where a format writes values without
quotes (XML, Qwen3-Coder, GLM), the parameter's schema says whether `5` is a number or a text; without one it is JSON
where it can be.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from quintain.fences import last_fence

MAX_CALLS: Final = 128
MAX_CHARS: Final = 100_000
MAX_DEPTH: Final = 32
MAX_ATOM_CHARS: Final = 400
"""Between two brackets or commas of Python's syntax, strings left out: this bounds how deep `ast` can nest."""

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each function on offer."""

_STRING = re.compile(r"""(?:'''|\"\"\")|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*\"""")
_CALL_START = re.compile(r"[\[\s(]{0,8}[A-Za-z_][\w.]{0,199}\s{0,4}\(")
_LANGUAGES: Final = frozenset({"", "json", "python", "py", "tool_call", "tool_code"})
_NAMES: Final = ("name", "tool_name", "tool", "action", "function")
_ARGUMENTS: Final = ("arguments", "parameters", "input", "args", "action_input", "kwargs")
_ACTION = re.compile(
    r"^Action:\s{0,4}([\w.-]{1,200})\s{0,4}\nAction Input:\s{0,4}(\{.*?\})\s*$", re.MULTILINE | re.DOTALL
)
_LITERALS: Final = {"true": True, "false": False, "null": None}
_LOOKS_LIKE_A_CALL = re.compile(
    r"<[|｜/]?[^<>\n]{0,40}(?:tool|function|invoke|action)[^<>\n]{0,40}>|\[/?TOOL_|\bto=functions\.", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


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
        return _bounded(_read(text.strip(), schemas))
    except _No as error:
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
            return Split("", tuple(_bounded(found))) if found else Split(text)
        if format_name == "none" or FORMATS[format_name].begin not in text:
            return Split(text)
        form = FORMATS[format_name]
        said, bodies, unfinished = _elements(text, form)
        if unfinished and not closed:
            return Split(text)
        calls = _bounded([call for body in bodies for call in form.read(body, functions)])
        return Split(said.strip(), tuple(calls)) if calls else Split(text)
    except (_No, RecursionError, MemoryError):
        return Split(text)


def looks_like_a_call(text: str) -> bool:
    """Whether `text` has what call formats have, known ones or not: marks that name a tool, a function, an action."""
    return _LOOKS_LIKE_A_CALL.search(text) is not None


class _No(Exception):
    """Raised inside this module where the text cannot be read."""


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
            raise _No(f"it names a call of {name} within other text")
    if text[:1] in ("{", "["):
        raise _No("it begins like a call and is neither JSON nor Python")
    if looks_like_a_call(text):
        raise _No("it looks like a call, in a format that is not known")
    return []


def _embedded(text: str, schemas: Schemas) -> list[Call]:
    """ReAct's actions, or else the JSON objects within other text that call a function on offer."""
    calls = [_call({"name": name, "arguments": _json(given)}) for name, given in _ACTION.findall(text)]
    at, decoder = text.find("{"), json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
    for _ in range(MAX_CALLS if not calls and len(text) <= MAX_CHARS else 0):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            value, end = None, at + 1
        if isinstance(value, dict) and _named(value) in schemas:
            calls.append(_call(value))
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
        raise _No(f"it makes {len(bodies)} calls, and at most {MAX_CALLS} are read")
    return said, bodies, unfinished


def _whole(text: str) -> list[Call] | None:
    """The calls that the whole of `text` is; None where it does not begin like any."""
    if text.startswith("{") or re.match(r"\[\s{0,64}[{\]]", text):
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
            return _of_json([_json(line) for line in lines])  # one object a line
        return _of_json(_json(text))
    return _of_python(text) if _CALL_START.match(text) else None


def _json(text: str) -> Any:
    if len(text) > MAX_CHARS:
        raise _No(f"its calls have {len(text):,} characters, and at most {MAX_CHARS:,} are read")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except ValueError as error:
        raise _No(f"it is no JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _No("a key is given twice")
    return found


def _no_constant(name: str) -> None:
    raise _No(f"{name} is no JSON")


def _of_json(value: Any) -> list[Call]:
    if isinstance(value, dict) and "tool_calls" in value:
        value = value["tool_calls"] or []
    if isinstance(value, dict):
        return [_call(value)]
    if not isinstance(value, list):
        raise _No("calls are an object or a list of objects")
    return [_call(entry) for entry in value]


def _call(entry: Any) -> Call:
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict):
        raise _No("a call is an object")
    name = _named(entry)
    if name is not None:
        arguments: Any = next((entry[key] for key in _ARGUMENTS if key in entry), {})
        if isinstance(arguments, str):  # OpenAI writes the arguments as JSON within JSON
            arguments = _json(arguments) if arguments.strip() else {}
        arguments = {} if arguments is None else arguments
    elif len(entry) == 1:
        [(name, arguments)] = entry.items()
    else:
        raise _No("a call has a name and arguments")
    if not isinstance(arguments, dict):
        raise _No("the arguments of a call are an object")
    return Call(name, arguments)


def _named(entry: Mapping[str, Any]) -> str | None:
    """The name of the function that `entry` calls, where it has one."""
    found = entry.get("function")
    entry = found if isinstance(found, dict) else entry
    return next((entry[key] for key in _NAMES if isinstance(entry.get(key), str)), None)


def _of_python(text: str) -> list[Call] | None:
    if len(text) > MAX_CHARS:
        raise _No(f"its calls have {len(text):,} characters, and at most {MAX_CHARS:,} are read")
    _shallow(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None  # prose may begin like a call: "f(x) is a function"
    calls = []
    for statement in tree.body:
        if not isinstance(statement, ast.Expr):
            raise _No("it is Python, and more than calls")
        value = statement.value
        calls += value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    return [_python_call(call) for call in calls]


def _shallow(text: str) -> None:
    """Refuse what could nest `ast` deeply, before it is parsed."""
    if "'''" in text or '"""' in text:
        raise _No("strings in three quotes are not read")
    bare, depth = _STRING.sub("s", text), 0
    for char in bare:
        depth += (char in "([{") - (char in ")]}")
        if depth > MAX_DEPTH:
            raise _No("it is nested too deeply")
    if any(len(atom) > MAX_ATOM_CHARS for atom in re.split(r"[,()\[\]{}\n]", bare)):
        raise _No("it is Python, and more than calls")


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise _No("it is Python, and more than calls")
    if node.args:
        raise _No("an argument has no name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise _No("an argument has no name, or is given twice")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(_name(node.func), arguments)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise _No("what is called is no name")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, float) and value in (float("inf"), float("-inf")):
                raise _No("a number is infinite")
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -_value(node.operand) if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_value(key) if key is not None else None for key in keys]
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise _No("a dictionary's keys are different texts")
            return dict(zip(names, map(_value, values), strict=True))
        case ast.Name(id=name):
            return _LITERALS.get(name, name)
        case ast.Attribute() | ast.Subscript() | ast.Call(keywords=[]):
            return ast.unparse(node)
    raise _No(f"an argument is no value: {ast.unparse(node)[:80]}")


def _bounded(calls: list[Call]) -> list[Call]:
    if len(calls) > MAX_CALLS:
        raise _No(f"it makes {len(calls)} calls, and at most {MAX_CALLS} are read")
    for call in calls:
        _shallow_value(call.arguments, MAX_DEPTH)
    return calls


def _shallow_value(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise _No("it is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            _shallow_value(part, depth - 1)


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
    return _of_json(_json(body))


def _invoked(body: str, schemas: Schemas) -> list[Call]:
    return [_typed(name, _INVOKED.findall(inner), schemas) for name, inner in _INVOKE.findall(body)]


def _typed(name: str, pairs: Iterable[tuple[str, str]], schemas: Schemas) -> Call:
    """A call whose values are written without quotes."""
    name = name.strip()
    properties = schemas.get(name, _NO_SCHEMA).get("properties", {})
    arguments: dict[str, Any] = {}
    for key, value in pairs:
        if key in arguments:
            raise _No("a key is given twice")
        schema = properties.get(key)
        text = isinstance(schema, Mapping) and schema.get("type") == "string"
        arguments[key] = value if text else _json_or_text(value)
    if not name:
        raise _No("a call has a name and arguments")
    return Call(name, arguments)


def _json_or_text(value: str) -> Any:
    try:
        return _json(value)
    except _No:
        return value


def _json_calls(body: str, schemas: Schemas) -> list[Call]:
    return _of_json(_json(body.strip()))


def _named_json(body: str, schemas: Schemas) -> list[Call]:
    """`name` and then its arguments as JSON, whatever mark or fence stands between (DeepSeek, Kimi, Mistral)."""
    body = body.strip()
    if body[:1] in ("[", "{"):
        return _of_json(_json(body))
    name, brace, rest = body.partition("{")
    name = re.split(r"<[^<>]*>|\[[A-Z_]+\]|\s", name.removeprefix("function<｜tool▁sep｜>").strip())[0]
    name = re.sub(r"^functions\.|:\d+$", "", name)
    if not brace or not name:
        raise _No("a call has a name and arguments")
    return _of_json([{"name": name, "arguments": _json("{" + rest.strip().removesuffix("```").strip())}])


def _gemma(body: str, schemas: Schemas) -> list[Call]:
    """`call:name{key:<|"|>text<|"|>,other:5}`: JSON but for the keys and the quotes."""
    name, brace, rest = body.strip().removeprefix("call:").partition("{")
    parts = ("{" + rest).split('<|"|>')
    parts = [_BARE_KEY.sub(r'\1"\2":', part) if i % 2 == 0 else json.dumps(part) for i, part in enumerate(parts)]
    if not brace:
        raise _No("a call has a name and arguments")
    return _of_json([{"name": name.strip(), "arguments": _json("".join(parts))}])


def _python_calls(body: str, schemas: Schemas) -> list[Call]:
    found = _of_python(body.strip())
    if found is None:
        raise _No("it is no Python")
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
