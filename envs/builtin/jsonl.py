"""JSON-lines files of tasks: one JSON object a line, plain or gzipped. A mistake names the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quintain.failure import QuintainError


def read_rows(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of the file `path` with their line numbers, from 1; blank lines are skipped.

    `expected` says what a line should be, for the error. Raises QuintainError where the file or a line cannot be read.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise QuintainError(f"cannot read the tasks in {path}: {error}") from None
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
