"""Files of records: JSON lines or CSV with a header, gzipped or not, or Parquet. A mistake names file and row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quintain.failure import QuintainError, one_line


def read_rows(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of the file `path`, by its ending, with their line (in Parquet: row) numbers, from 1.

    Blank lines are skipped; of CSV every value is text. `expected` says what a record should be, for the error. Raises
    QuintainError where the file or a record cannot be read.
    """
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
        return
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise QuintainError(f"cannot read the tasks in {path}: {error}") from None
    if path.name.endswith((".csv", ".csv.gz")):
        yield from _csv(path, text)
        return
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise QuintainError(f"{path} line {line}: expected {expected}")
        yield line, row


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise QuintainError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise QuintainError(f"cannot read the tasks in {path}: {one_line(str(error))}") from None
    return rows
