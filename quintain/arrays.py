"""Arrays as fields of the data model: checked, read-only, and lists in JSON (`quintain.codec`).

Apart from the codec, so that what has no arrays (environments, verifiers, their servers) starts without numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator


def as_ints(values: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    """`values` as a read-only int32 array [N]; numbers that are no int32 are refused."""
    return _array(values, np.dtype("<i4"), "iu")


def as_floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`values` as a read-only float32 array [N]."""
    return _array(values, np.dtype("<f4"), "iuf")


def _array(values: Any, dtype: np.dtype[Any], kinds: str) -> np.ndarray[Any, Any]:
    if isinstance(values, bytes):
        values = np.frombuffer(values, dtype=dtype)
    elif not isinstance(values, (np.ndarray, Iterable)):
        raise ValueError(f"expected a flat list of numbers ({dtype.name}), got {type(values).__name__}")
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
