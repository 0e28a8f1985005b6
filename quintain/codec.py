"""Data in and out: JSON at the edges, msgpack in bulk, validated both ways by the types themselves.

`from_json(to_json(x), type(x))` and `unpack(pack(x), type(x))` give back an equal object for every frozen dataclass
of the data model. Arrays travel as lists in JSON and as raw little-endian bytes in msgpack. A value is never taken for
one of another type: `true` is no number, and "1" neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgpack
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, SchemaValidator

from quintain.failure import QuintainError

T = TypeVar("T")

LONG_INTEGER: Final = 1
"""The msgpack extension type of an integer of more than 64 bits: its bytes, big-endian, signed."""

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""An integer of ours, which databases and tables have to hold."""


def _adapter(kind: Any) -> TypeAdapter[Any]:
    hashable: Hashable = kind
    return _made_adapter(hashable)


@cache
def _made_adapter(kind: Any) -> TypeAdapter[Any]:
    adapter = TypeAdapter(kind)
    adapter.validator = SchemaValidator(_exact(adapter.core_schema))
    return adapter


def _exact(schema: Any) -> Any:
    """A core schema whose scalars take nothing but their own type (an integer is a float too)."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_exact, schema))
    if not isinstance(schema, dict):
        return schema
    out = {name: part if name == "metadata" else _exact(part) for name, part in schema.items()}
    return out | {"strict": True} if schema.get("type") in ("int", "float", "bool", "str") else out


def to_builtins(value: Any) -> Any:
    """`value` as JSON-ready dicts, lists, strings and numbers."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_builtins(data: Any, kind: type[T]) -> T:
    """The `kind` that `data` (dicts and lists) describes, or `QuintainError` with the field's path."""
    return _validate(kind, lambda adapter: adapter.validate_python(data))


def to_json(value: Any) -> str:
    """`value` as JSON text, or `QuintainError` with the field and the type that JSON has no form for."""
    try:
        return _adapter(type(value)).dump_json(value).decode()
    except (PydanticSerializationError, UnicodeError) as error:
        raise QuintainError(f"cannot write as JSON {_culprit(value, type(value).__name__) or f'it: {error}'}") from None


def from_json(text: str | bytes, kind: type[T]) -> T:
    """The `kind` that the JSON `text` describes, or `QuintainError` with the field's path."""
    return _validate(kind, lambda adapter: adapter.validate_json(text))


def pack(value: Any) -> bytes:
    """`value` as msgpack bytes, arrays as raw bytes; or `QuintainError` with the field and type that has no form."""
    try:
        builtins = _adapter(type(value)).dump_python(value, mode="python")
        packed: bytes = msgpack.packb(builtins, default=_raw)
    except (PydanticSerializationError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise QuintainError(f"cannot pack {_culprit(value, type(value).__name__) or f'it: {error}'}") from None
    return packed


def unpack(data: bytes, kind: type[T]) -> T:
    """The `kind` that the msgpack bytes `data` hold, or `QuintainError` with the field's path."""
    try:
        builtins = msgpack.unpackb(data, strict_map_key=False, ext_hook=_unusual)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:  # TypeError: a map is a map's key
        raise QuintainError(f"expected msgpack, got {len(data)} bytes that are none ({type(error).__name__})") from None
    return _validate(kind, lambda adapter: adapter.validate_python(builtins))


def _raw(value: Any) -> Any:
    if _is_array(value):
        return value.tobytes()
    if isinstance(value, int):  # of more than 64 bits, which msgpack has no form for
        return msgpack.ExtType(LONG_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    raise TypeError(f"there is no form for a {type(value).__name__}")


def _is_array(value: Any) -> bool:
    """Whether `value` is an array of numpy's, which nothing here imports: it takes longer than all of this does."""
    return isinstance(value, getattr(sys.modules.get("numpy"), "ndarray", ()))


def _unusual(code: int, data: bytes) -> Any:
    if code != LONG_INTEGER:
        raise ValueError(f"there is no type {code}")
    return int.from_bytes(data, "big", signed=True)


def _culprit(value: Any, path: str) -> str | None:
    """The place and type of what in `value` cannot be written."""
    if isinstance(value, Mapping):
        parts = [(f"{path}[{name!r}]", part) for name, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{place}]", part) for place, part in enumerate(value)]
    elif is_dataclass(value):
        parts = [(f"{path}.{f.name}", getattr(value, f.name)) for f in fields(value) if f.repr]
    else:
        fine = value is None or isinstance(value, (bool, int, float, bytes)) or _is_array(value)
        fine = fine or (isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value))
        return None if fine else f"{path}, which is of type {type(value).__name__}"
    return next((found for at, part in parts if (found := _culprit(part, at))), None)


def _validate(kind: type[T], validate: Callable[[TypeAdapter[T]], T]) -> T:
    try:
        return validate(_adapter(kind))
    except ValidationError as error:
        raise QuintainError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """A pydantic error as one line: the first field's path, what is wrong with it, and what came."""
    return "; ".join(_problems(error.errors(include_url=False)[:3]))


def _problems(errors: Iterable[Any]) -> Iterable[str]:
    for item in errors:
        path = ".".join(str(part) for part in item["loc"]) or "the value"
        got = repr(item.get("input"))
        yield f"{path}: {item['msg']} (got {got if len(got) <= 80 else got[:77] + '...'})"
