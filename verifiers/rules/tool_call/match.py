"""Whether a call is one of those allowed, as the Berkeley Function Calling Leaderboard defines it. Pure.

The rules (Patil et al. 2025, "The Berkeley Function Calling Leaderboard", and its AST evaluation for Python):
- the function is the expected one; "." in its name may be written "_", as OpenAI's API has it;
- no required parameter is missing, none is there that the function or the expectation does not have; one that is
  expected may be left out only where "" is among its allowed values;
- a value has exactly the parameter's type (an integer will do for a float, a bool is no integer), or the type of
  the allowed values, where those are not of the parameter's type (a variable's name for an integer);
- a variable's name is equal as it stands; texts are equal but for case and for blanks at their ends, or runs of them
  within; with `texts: bfcl`, without regard to case, blanks and `,./-_*^`, and with `'` for `"`, unless they are
  numbers or dates, in which every character counts;
- arrays are equal item by item; of a dictionary, each value is one of those allowed for its key, and a key may be
  left out where "" is allowed;
- several calls are matched in any order by a maximum matching, so that a call that fits two expectations is
  never in the way of one that fits only one.

Differences from BFCL's own programme: texts are compared by every character, and what may be left out is left out and
not "", unless `texts: bfcl`; an integer will do for a float inside an array too; true is not 1 inside a
dictionary either; the text "." is not "", though they are equal but for punctuation; and the matching is a maximum
one, where BFCL takes the first fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from quintain.call_syntax import Call
from quintain.verifiers.text import shown

OMITTED: Final = ""
"""Among the allowed values of a parameter: it may be left out."""

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "any": (str,),
    "integer": (int,),
    "float": (float, int),
    "number": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "object": (dict,),
}
Texts = Literal["exact", "bfcl"]
_NUMBER_LIKE = re.compile(r"\s*[-+]?[\d\s,./:_*^-]*\d[\d\s,./:_*^%-]*")
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Function:
    """A function on offer: the schema of each parameter, and which are required."""

    name: str
    parameters: Mapping[str, Mapping[str, Any]]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Expected:
    """One expected call: its function, and the allowed values of each parameter."""

    function: Function
    allowed: Mapping[str, Sequence[Any]]


def why_not(call: Call, expected: Expected, texts: Texts = "exact") -> str | None:
    """Why `call` is not the `expected` one, or None where it is."""
    function = expected.function
    if call.name not in (function.name, function.name.replace(".", "_")):
        return f"it calls {shown(call.name, 80)}, not {function.name}"
    for name in sorted(function.required - call.arguments.keys()):
        return f"the required parameter {name} is missing"
    for name, value in call.arguments.items():
        if name not in function.parameters or name not in expected.allowed:
            return f"there is no parameter {shown(name, 80)}"
        problem = _why_not_value(value, function.parameters[name], expected.allowed[name], texts)
        if problem:
            return f"{name}: {problem}"
    for name, allowed in expected.allowed.items():
        if name not in call.arguments and OMITTED not in allowed:
            return f"the parameter {name} is missing"
    return None


def standard(text: str, texts: Texts) -> str:
    """`text` as it is compared."""
    if texts == "exact" or _NUMBER_LIKE.fullmatch(text):
        return " ".join(text.split()).casefold()
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _why_not_value(value: Any, schema: Mapping[str, Any], allowed: Sequence[Any], texts: Texts) -> str | None:
    known = _TYPES.get(str(schema.get("type", "any")), (str,))
    given = [option for option in allowed if option != OMITTED]
    if type(value) not in known and not (given and type(value) is type(given[0])):
        return f"its type is not {schema.get('type', 'any')}"
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping) and not _items_fit(value, items, given):
        return f"its items are not of type {items.get('type')}"
    is_variable = bool(given) and type(given[0]) not in known
    if any(value == option if is_variable else _same(value, option, texts) for option in given):
        return None
    if texts == "bfcl" and value == OMITTED and OMITTED in allowed:
        return None
    return f"{shown(value, 80)} is not allowed"


def _items_fit(value: Sequence[Any], items: Mapping[str, Any], options: Sequence[Any]) -> bool:
    known = _TYPES.get(str(items.get("type", "any")), (str,))
    for option in options or [[]]:
        like = next((type(item) for item in option if item != OMITTED), None) if isinstance(option, list) else None
        if all(type(item) in known or type(item) is like for item in value):
            return True
    return False


def _same(value: Any, option: Any, texts: Texts) -> bool:
    if isinstance(value, str) and isinstance(option, str):
        return standard(value, texts) == standard(option, texts)
    if isinstance(value, list) and isinstance(option, list):
        return len(value) == len(option) and all(_same(*pair, texts) for pair in zip(value, option, strict=True))
    if isinstance(value, dict) and isinstance(option, Mapping):
        return _same_dict(value, option, texts)
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    return type(value) in (int, float, type(None)) and bool(value == option)


def _same_dict(value: Mapping[str, Any], option: Mapping[str, Any], texts: Texts) -> bool:
    for key, part in value.items():
        allowed = option.get(key)
        if key not in option or not (
            any(_same(part, choice, texts) for choice in allowed)
            if isinstance(allowed, list)
            else _same(part, allowed, texts)
        ):
            return False
    return all(key in value or (isinstance(allowed, list) and OMITTED in allowed) for key, allowed in option.items())


def matching(fits: Sequence[Sequence[bool]]) -> int:
    """The size of a maximum matching: `fits[i][j]` says whether i on the left fits j on the right (Kuhn 1955)."""
    taken_by: dict[int, int] = {}

    def place(left: int, tried: set[int]) -> bool:
        for right, fit in enumerate(fits[left]):
            if fit and right not in tried:
                tried.add(right)
                if right not in taken_by or place(taken_by[right], tried):
                    taken_by[right] = left
                    return True
        return False

    return sum(place(left, set()) for left in range(len(fits)))
