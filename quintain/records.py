"""Files of records: JSON lines or CSV with a header, gzipped or not, or Parquet. A mistake names file and row.

And what records hold where they hold chats: messages and tools as OpenAI's clients, TRL and `datasets` write them.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, get_args

from quintain.failure import QuintainError, one_line
from quintain.messages import REASONING, FunctionCall, FunctionSpec, Message, Role, ToolCall, ToolSpec

ROWS_AT_ONCE: Final = 1024
"""Of a Parquet file: rows decoded at a time."""


def read_rows(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of the file `path`, by its ending, with their line (in Parquet: row) numbers, from 1.

    Few are in memory at a time. Blank lines are skipped; of CSV every value is text. `expected` says what a record
    should be, for the error. Raises QuintainError where the file or a record cannot be read, once it is reached.
    """
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
        return
    table = path.name.endswith((".csv", ".csv.gz"))
    opened: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="" if table else "\n") as file:
            yield from _csv(path, file) if table else _json_lines(path, file, expected)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise QuintainError(f"cannot read {path}: {error}") from None


def _json_lines(path: Path, file: IO[str], expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(file, 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise QuintainError(f"{path} line {line}: expected {expected}")
        yield line, row


def _csv(path: Path, file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise QuintainError(
                    f"{path} line {reader.line_num}: the header has {len(header)} columns, this row {len(row)}"
                )
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise QuintainError(f"{path} line {reader.line_num}: {error}") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise QuintainError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise QuintainError(f"cannot read {path}: {one_line(str(error))}") from None


def messages_in(value: Any) -> tuple[Message, ...]:
    """The chat messages that a list of {role, content, ...} says; JSON text of one too.

    A call's arguments may be text or a dictionary. Raises ValueError, which says which message is wrong and why.
    """
    data = _json_of(value)
    if not isinstance(data, (list, tuple)) or not data:
        raise ValueError(f"expected a list of messages {{role, content}}, got {one_line(repr(value), 80)}")
    return tuple(_message(entry, place) for place, entry in enumerate(data))


def _message(entry: Any, place: int) -> Message:
    if not isinstance(entry, Mapping):
        raise ValueError(f"message {place}: expected {{role, content}}, got {one_line(repr(entry), 80)}")
    role, content = entry.get("role"), entry.get("content")
    if role not in get_args(Role):
        raise ValueError(f"message {place}: the role must be one of {', '.join(get_args(Role))}, not {role!r}")
    calls = tuple(_call(call, number) for number, call in enumerate(entry.get("tool_calls") or ()))
    if not (isinstance(content, (str, list, tuple)) or (content is None and calls)):
        raise ValueError(f"message {place}: the content must be text, not {one_line(repr(content), 80)}")
    thought = next((entry[name] for name in (REASONING, "reasoning", "thinking") if entry.get(name)), None)
    name, answers = entry.get("name"), entry.get("tool_call_id")
    return Message(role, content, calls, answers, name, thought)  # type: ignore[arg-type]  # parts are read there


def _call(call: Any, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise ValueError(f"a tool call needs a function with a name, not {one_line(repr(call), 80)}")
    if not isinstance(arguments, str):
        # Tables give every call the columns of all: what is None was not there.
        given = {key: value for key, value in (arguments or {}).items() if value is not None}
        arguments = json.dumps(given, ensure_ascii=False)
    return ToolCall(call.get("id") or f"call_{number}", FunctionCall(name, arguments))


def tools_in(value: Any) -> tuple[ToolSpec, ...]:
    """The tools that a list of JSON schemas (OpenAI's form), or JSON text of one, says. Raises ValueError."""
    data = _json_of(value) or ()
    try:
        functions = [tool.get("function", tool) for tool in data]
        return tuple(
            ToolSpec(FunctionSpec(f["name"], f.get("description") or "", f.get("parameters") or {})) for f in functions
        )
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"expected a list of function schemas, got {one_line(repr(value), 80)}") from None


def _json_of(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
