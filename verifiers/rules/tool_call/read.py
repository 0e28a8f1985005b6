"""The function calls in a model's answer, however it writes them. Pure; nothing is ever evaluated.

Read, in this order:
1. every `<tool_call>…</tool_call>`, each a JSON object;
2. the whole answer as JSON: OpenAI's `tool_calls` (or the message that has them), `{"name": …, "arguments": {…}}`,
   `{function: {parameter: value}}`, or a list of any of these;
3. the whole answer as Python: `f(a=1)`, `[f(a=1), g.h(b="x")]`, or one call a line, parsed with `ast`;
4. the last fenced block of JSON or Python, as 2 or 3.
What is none of these makes no call, unless it starts or looks like one: then it is `Unreadable`.

What always holds: sizes, depth and the number of calls are bounded before anything is parsed or walked; a key given
twice, NaN, infinity, a positional argument or an expression is `Unreadable`. In Python's syntax a bare name, and a
call without keywords, stand for a variable, which is its own text, as in BFCL.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from quintain.verifiers.text import last_fence

MAX_CALLS: Final = 128
MAX_CHARS: Final = 100_000
MAX_DEPTH: Final = 32
MAX_ATOM_CHARS: Final = 400
"""Between two brackets or commas of Python's syntax, strings left out: this bounds how deep `ast` can nest."""

_ELEMENT = "<tool_call>"
_STRING = re.compile(r"""(?:'''|\"\"\")|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*\"""")
_CALL_START = re.compile(r"[\[\s(]{0,8}[A-Za-z_][\w.]{0,199}\s{0,4}\(")
_LANGUAGES: Final = frozenset({"", "json", "python", "py", "tool_call", "tool_code"})
_LITERALS: Final = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The answer tries to call something, and why it cannot be read."""

    reason: str


def read_calls(text: str, names: Iterable[str] = ()) -> list[Call] | Unreadable:
    """The calls in `text`, in order, none where it makes none; `names` are the functions on offer."""
    try:
        calls = _read(text.strip(), frozenset(names))
        if len(calls) > MAX_CALLS:
            return Unreadable(f"it makes {len(calls)} calls, and at most {MAX_CALLS} are read")
        for call in calls:
            _bounded(call.arguments, MAX_DEPTH)
    except _No as error:
        return Unreadable(str(error))
    except (RecursionError, MemoryError):
        return Unreadable("it is nested too deeply")
    return calls


class _No(Exception):
    """Raised inside this module where the answer cannot be read."""


def _read(text: str, names: frozenset[str]) -> list[Call]:
    if _ELEMENT in text:
        elements = text.split(_ELEMENT)[1:]
        if len(elements) > MAX_CALLS:
            raise _No(f"it makes {len(elements)} calls, and at most {MAX_CALLS} are read")
        return [call for element in elements for call in _of_json(_json(element.partition("</tool_call>")[0]))]
    found = _whole(text)
    if found is not None:
        return found
    block = last_fence(text, _LANGUAGES)
    if block is not None:
        found = _whole(block.strip())
        if found is not None:
            return found
    for name in names:
        if re.search(rf"(?<![\w.]){re.escape(name)}\s{{0,4}}\(", text):
            raise _No(f"it names a call of {name} within other text")
    if text[:1] in ("{", "["):
        raise _No("it begins like a call and is neither JSON nor Python")
    return []


def _whole(text: str) -> list[Call] | None:
    """The calls that the whole of `text` is; None where it does not begin like any."""
    if text.startswith("{") or re.match(r"\[\s{0,64}[{\]]", text):
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
    if isinstance(entry.get("name"), str):
        name, arguments = entry["name"], entry.get("arguments", entry.get("parameters", {}))
        if isinstance(arguments, str):  # OpenAI writes the arguments as JSON within JSON
            arguments = _json(arguments) if arguments.strip() else {}
    elif len(entry) == 1:
        [(name, arguments)] = entry.items()
    else:
        raise _No("a call has a name and arguments")
    if not isinstance(arguments, dict):
        raise _No("the arguments of a call are an object")
    return Call(name, arguments)


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


def _bounded(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise _No("it is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            _bounded(part, depth - 1)
