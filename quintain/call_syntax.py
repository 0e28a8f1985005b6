"""Calls of functions as JSON or as Python writes it, bounded before anything is parsed or walked. Pure.

What always holds: nothing is ever evaluated; a key given twice, NaN, infinity, a positional argument or an expression
is refused. In Python's syntax a bare name, and a call without keywords, stand for a variable, which is its own text, as
in BFCL.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from quintain.strict_json import NotJson, read_json

MAX_CALLS: Final = 128
MAX_CHARS: Final = 100_000
MAX_DEPTH: Final = 32
MAX_ATOM_CHARS: Final = 400
"""Between two brackets or commas of Python's syntax, strings left out: this bounds how deep `ast` can nest."""

_STRING = re.compile(r"""(?:'''|\"\"\")|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*\"""")
CALL_START = re.compile(r"[\[\s(]{0,8}[A-Za-z_][\w.]{0,199}\s{0,4}\(")
_NAMES: Final = ("name", "tool_name", "tool", "action", "function")
_ARGUMENTS: Final = ("arguments", "parameters", "input", "args", "action_input", "kwargs")
_LITERALS: Final = {"true": True, "false": False, "null": None}


class CallSyntaxError(Exception):
    """The text tries to call something and cannot be read; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def json_value(text: str) -> Any:
    """The value that `text` is as JSON. Raises CallSyntaxError."""
    if len(text) > MAX_CHARS:
        raise CallSyntaxError(f"its calls have {len(text):,} characters, and at most {MAX_CHARS:,} are read")
    try:
        return read_json(text)
    except NotJson as error:
        raise CallSyntaxError(str(error)) from None


def calls_of_json(value: Any) -> list[Call]:
    """The calls that a JSON value is: one, a list, or OpenAI's message that has them. Raises CallSyntaxError."""
    if isinstance(value, dict) and "tool_calls" in value:
        value = value["tool_calls"] or []
    if isinstance(value, dict):
        return [call_of(value)]
    if not isinstance(value, list):
        raise CallSyntaxError("calls are an object or a list of objects")
    return [call_of(entry) for entry in value]


def call_of(entry: Any) -> Call:
    """The call that a JSON value is. Raises CallSyntaxError."""
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict):
        raise CallSyntaxError("a call is an object")
    name = name_of(entry)
    if name is not None:
        arguments: Any = next((entry[key] for key in _ARGUMENTS if key in entry), {})
        if isinstance(arguments, str):  # OpenAI writes the arguments as JSON within JSON
            arguments = json_value(arguments) if arguments.strip() else {}
        arguments = {} if arguments is None else arguments
    elif len(entry) == 1:
        [(name, arguments)] = entry.items()
    else:
        raise CallSyntaxError("a call has a name and arguments")
    if not isinstance(arguments, dict):
        raise CallSyntaxError("the arguments of a call are an object")
    return Call(name, arguments)


def name_of(entry: Mapping[str, Any]) -> str | None:
    """The name of the function that `entry` calls, where it has one."""
    found = entry.get("function")
    entry = found if isinstance(found, dict) else entry
    return next((entry[key] for key in _NAMES if isinstance(entry.get(key), str)), None)


def calls_of_python(text: str) -> list[Call] | None:
    """The calls that the whole of `text` is as Python; None where it is none. Raises CallSyntaxError."""
    if len(text) > MAX_CHARS:
        raise CallSyntaxError(f"its calls have {len(text):,} characters, and at most {MAX_CHARS:,} are read")
    _shallow(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None  # prose may begin like a call: "f(x) is a function"
    calls = []
    for statement in tree.body:
        if not isinstance(statement, ast.Expr):
            raise CallSyntaxError("it is Python, and more than calls")
        value = statement.value
        calls += value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    return [_python_call(call) for call in calls]


def _shallow(text: str) -> None:
    """Refuse what could nest `ast` deeply, before it is parsed."""
    if "'''" in text or '"""' in text:
        raise CallSyntaxError("strings in three quotes are not read")
    bare, depth = _STRING.sub("s", text), 0
    for char in bare:
        depth += (char in "([{") - (char in ")]}")
        if depth > MAX_DEPTH:
            raise CallSyntaxError("it is nested too deeply")
    if any(len(atom) > MAX_ATOM_CHARS for atom in re.split(r"[,()\[\]{}\n]", bare)):
        raise CallSyntaxError("it is Python, and more than calls")


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise CallSyntaxError("it is Python, and more than calls")
    if node.args:
        raise CallSyntaxError("an argument has no name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise CallSyntaxError("an argument has no name, or is given twice")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(_name(node.func), arguments)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise CallSyntaxError("what is called is no name")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, float) and value in (float("inf"), float("-inf")):
                raise CallSyntaxError("a number is infinite")
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -_value(node.operand) if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_value(key) if key is not None else None for key in keys]
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise CallSyntaxError("a dictionary's keys are different texts")
            return dict(zip(names, map(_value, values), strict=True))
        case ast.Name(id=name):
            return _LITERALS.get(name, name)
        case ast.Attribute() | ast.Subscript() | ast.Call(keywords=[]):
            return ast.unparse(node)
    raise CallSyntaxError(f"an argument is no value: {ast.unparse(node)[:80]}")


def bounded(calls: list[Call]) -> list[Call]:
    """`calls` where they are not too many and not too deep. Raises CallSyntaxError."""
    if len(calls) > MAX_CALLS:
        raise CallSyntaxError(f"it makes {len(calls)} calls, and at most {MAX_CALLS} are read")
    for call in calls:
        _shallow_value(call.arguments, MAX_DEPTH)
    return calls


def _shallow_value(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise CallSyntaxError("it is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            _shallow_value(part, depth - 1)
