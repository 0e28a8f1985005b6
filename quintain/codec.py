"""Data in and out: JSON at the edges, msgpack in bulk, validated both ways by the types themselves.

`from_json(to_json(x), type(x))` and `unpack(pack(x), type(x))` give back an equal object for every frozen dataclass
of the data model. Arrays travel as lists in JSON and as raw little-endian bytes in msgpack. A value is never taken for
one of another type: `true` is no number, and "1" neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Annotated, Any, TypeVar

import msgpack
import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from quintain.failure import QuintainError

T = TypeVar("T")


def as_ints(values: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    """`values` as a read-only int32 array [N]; numbers that are no int32 are refused."""
    return _array(values, np.dtype("<i4"), "iu")


def as_floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`values` as a read-only float32 array [N]."""
    return _array(values, np.dtype("<f4"), "iuf")


def _array(values: Any, dtype: np.dtype[Any], kinds: str) -> np.ndarray[Any, Any]:
    if isinstance(values, bytes):
        values = np.frombuffer(values, dtype=dtype)
    array = values if isinstance(values, np.ndarray) else np.asarray(list(values), dtype=None if values else dtype)
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise ValueError(f"expected a flat list of numbers ({dtype.name}), got {array.dtype} of shape {array.shape}")
    if dtype.kind == "i" and array.size and array.dtype != dtype:
        info = np.iinfo(np.int32)
        if array.max() > info.max or array.min() < info.min:
            raise ValueError(f"token ids are 32-bit integers, got values from {array.min()} to {array.max()}")
    if array.dtype == dtype and not array.flags.writeable:
        return array
    array = np.array(array, dtype=dtype)
    array.setflags(write=False)
    return array


def _listed(array: np.ndarray[Any, Any]) -> list[Any]:
    listed: list[Any] = array.tolist()
    return listed


Ints = Annotated[
    np.ndarray[Any, np.dtype[np.int32]],
    PlainValidator(as_ints, json_schema_input_type=list[int]),
    PlainSerializer(_listed, return_type=list[int], when_used="json"),
]
"""Token ids and versions: int32 [N]."""

Floats = Annotated[
    np.ndarray[Any, np.dtype[np.float32]],
    PlainValidator(as_floats, json_schema_input_type=list[float]),
    PlainSerializer(_listed, return_type=list[float], when_used="json"),
]
"""Log-probabilities and the like: float32 [N]."""


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


def to_builtins(value: Any, kind: Any = None) -> Any:
    """`value` as JSON-ready dicts, lists, strings and numbers."""
    return _adapter(kind or type(value)).dump_python(value, mode="json")


def from_builtins(data: Any, kind: type[T]) -> T:
    """The `kind` that `data` (dicts and lists) describes, or `QuintainError` with the field's path."""
    return _validate(kind, lambda adapter: adapter.validate_python(data))


def to_json(value: Any, kind: Any = None) -> str:
    """`value` as JSON text."""
    return _adapter(kind or type(value)).dump_json(value).decode()


def from_json(text: str | bytes, kind: type[T]) -> T:
    """The `kind` that the JSON `text` describes, or `QuintainError` with the field's path."""
    return _validate(kind, lambda adapter: adapter.validate_json(text))


def pack(value: Any, kind: Any = None) -> bytes:
    """`value` as msgpack bytes, arrays as raw bytes."""
    plain = _adapter(kind or type(value)).dump_python(value, mode="python")
    packed: bytes = msgpack.packb(plain, default=_raw)
    return packed


def unpack(data: bytes, kind: type[T]) -> T:
    """The `kind` that the msgpack bytes `data` hold, or `QuintainError` with the field's path."""
    try:
        plain = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise QuintainError(f"expected msgpack, got {len(data)} bytes that are none ({type(error).__name__})") from None
    return _validate(kind, lambda adapter: adapter.validate_python(plain))


def _raw(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    raise TypeError(f"cannot pack a {type(value).__name__}")


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
