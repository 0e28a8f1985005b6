"""Records as LiveCodeBench has them (Jain et al. 2024, arXiv:2403.07974), and APPS's `input_output` form.

A record's cases are `public_test_cases` and `private_test_cases`: lists of `{"input", "output", "testtype"}`, as JSON
text or plain; the private ones also as base64 of zlib of a pickled JSON text, which is unpickled here with every
global refused, so it can only ever be a text. `testtype` is `stdin` (a program; compared by lines, words that are
decimals as decimals) or `functional` (a method `metadata.func_name` of `Solution`; `input` is one argument in JSON a
line, `output` its result in JSON). `input_output` is `{"inputs": […], "outputs": […], "fn_name": …}`; with a function
name its inputs are lists of arguments or texts of one JSON a line, and an output may be wrapped in a list of one.

Solutions are written with the usual imports taken for granted, so these come before them.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, Final

from quintain.verifiers.code.reference import (
    BadReference,
    Case,
    FunctionTask,
    StdioTask,
    Task,
    limits_of,
    listed,
    mapping,
    octets,
    text,
)

MAX_CASES_BYTES: Final = 256 << 20
STARRED: Final = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
PRELUDE: Final = "; ".join((*(f"from {name} import *" for name in STARRED), f"import {', '.join(STARRED)}")) + "\n"
"""On one line, so that the lines of a program's errors are off by one at most. The builtins come late, and so have
their own meaning again where a module has a function of the same name; the names of modules mean the modules."""


class _Texts(pickle.Unpickler):
    """Refuses whatever is not plain data."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no text")


def task_of_record(fields: Mapping[str, Any]) -> Task:
    """What a record asks. Raises BadReference."""
    if fields.get("input_output") is not None:
        return _of_input_output(fields)
    metadata = mapping(_plain(fields.get("metadata") or {}, "metadata"), "metadata: a mapping")
    cases = [
        mapping(case, "a test case")
        for name in ("public_test_cases", "private_test_cases")
        if fields.get(name)
        for case in _cases(fields[name], name)
    ]
    if not cases:
        raise BadReference("a record has public_test_cases, private_test_cases or input_output")
    kinds = {case.get("testtype", "stdin") for case in cases}
    if kinds == {"stdin"}:
        pairs = tuple(Case(octets(text(case, "input")), octets(text(case, "output"))) for case in cases)
        return _program(fields, pairs)
    if kinds == {"functional"}:
        name = text(metadata, "func_name")
        calls = [{"args": _arguments(case.get("input")), "accepts": [_json(case.get("output"))]} for case in cases]
        return _function(fields, name, calls)
    raise BadReference(f"all cases are stdin or all are functional, not {sorted(map(str, kinds))}")


def _of_input_output(fields: Mapping[str, Any]) -> Task:
    found = mapping(_plain(fields["input_output"], "input_output"), "input_output: a mapping")
    inputs, outputs = listed(found.get("inputs"), "inputs"), listed(found.get("outputs"), "outputs")
    if len(inputs) != len(outputs):
        raise BadReference(f"there are {len(inputs)} inputs and {len(outputs)} outputs")
    name = found.get("fn_name")
    if name is None:
        return _program(fields, tuple(Case(_lines(one), _lines(two)) for one, two in zip(inputs, outputs, strict=True)))
    calls = []
    for given, wanted in zip(inputs, outputs, strict=True):
        accepts = [_json(wanted)] if isinstance(wanted, str) else [wanted]
        if isinstance(wanted, list) and len(wanted) == 1:
            accepts.append(wanted[0])
        calls.append({"args": list(given) if isinstance(given, list) else _arguments(given), "accepts": accepts})
    return _function(fields, text(found, "fn_name"), calls)


def _program(fields: Mapping[str, Any], cases: tuple[Case, ...]) -> StdioTask:
    return StdioTask(cases, "python", "numbers", 0.0, PRELUDE, limits_of(fields))


def _function(fields: Mapping[str, Any], name: str, calls: list[dict[str, Any]]) -> FunctionTask:
    if not name.isidentifier():
        raise BadReference(f"func_name is the name of a function, not {name[:50]!r}")
    return FunctionTask(name, cases=tuple(calls), listed=True, prelude=PRELUDE, limits=limits_of(fields))


def _cases(value: object, name: str) -> list[Any]:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = _unpacked(value, name)
    found = _plain(value, name)
    if not isinstance(found, list):
        raise BadReference(f"{name} is a list of cases, not {type(found).__name__}")
    return found


def _unpacked(packed: str, name: str) -> str:
    """The text that LiveCodeBench has compressed."""
    try:
        stream = zlib.decompressobj()
        body = stream.decompress(base64.b64decode(packed.encode(), validate=True), MAX_CASES_BYTES)
        if stream.unconsumed_tail:
            raise BadReference(f"{name} is larger than {MAX_CASES_BYTES:,} bytes")
        found = _Texts(io.BytesIO(body)).load()
    except BadReference:
        raise
    except (binascii.Error, zlib.error, pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError) as error:
        raise BadReference(f"{name} is neither JSON nor LiveCodeBench's compressed form: {error}") from None
    if not isinstance(found, str):
        raise BadReference(f"{name} holds a {type(found).__name__}, not a text")
    return found


def _plain(value: object, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadReference(f"{name} is not JSON: {error}") from None


def _arguments(value: object) -> list[Any]:
    if not isinstance(value, str):
        raise BadReference(f"the input of a function is a text, one JSON a line, not {type(value).__name__}")
    return [_json(line) for line in value.split("\n") if line.strip()]


def _json(value: object) -> Any:
    return _plain(value, "a functional case")


def _lines(value: object) -> bytes:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise BadReference(f"what a program reads or writes is a text, not {type(value).__name__}")
    return octets(value)
