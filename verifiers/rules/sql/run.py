"""Executing queries that may be hostile, in a worker.

What always holds:
- only reading is possible: the authorizer refuses whatever is not SELECT, a read or a harmless function, so there is
  no ATTACH, PRAGMA, write, transaction, virtual table or extension; a file is opened read-only and immutable;
- nothing is written to disk: temporary tables are kept in memory;
- steps, rows, bytes and memory are bounded, the same for everybody; wall time is the pool's to bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from quintain.verdict import Outcome
from quintain.verifiers.rules.sql.compare import Row, end_of_order, same_rows, tied_orders, tied_rows
from quintain.verifiers.text import shown

MAX_VALUE_BYTES: Final = 1 << 20
MAX_RESULT_BYTES: Final = 64 << 20
MAX_HEAP_BYTES: Final = 256 << 20
"""What SQLite may allocate in the process, the database in memory included."""
STEPS_PER_LOOK: Final = 10_000

_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 16 << 20,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN: Final = frozenset(
    {"load_extension", "readfile", "writefile", "edit", "fsdir", "lsmode", "zipfile", "fts3_tokenizer"}
    | {"randomblob", "zeroblob"}
)
"""Functions that reach outside, and two that make much of nothing."""
_NOT_IN_SCRIPTS: Final = frozenset(
    {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE}
)
_HARMLESS_PRAGMAS: Final = frozenset({"foreign_keys", "encoding", "user_version", "defer_foreign_keys"})
_NO_SQL: Final = ("syntax error", "incomplete input", "unrecognized token")


class _Failed(Exception):
    """A query, or the making of its database, failed; `is_sql` says whether it was SQL at all."""

    def __init__(self, message: str, is_sql: bool = True) -> None:
        super().__init__(message)
        self.is_sql = is_sql


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on what `SqlVerifier.question` asks."""
    try:
        connection = _opened(item["schema"], item["path"], item["max_steps"])
    except _Failed as error:
        return _bad(f"its database cannot be made: {error}")
    with closing(connection):
        try:
            limits = (item["max_steps"], item["max_rows"])
            expected, columns = _executed(connection, item["query"], *limits)
            if _executed(connection, item["query"], *limits)[0] != expected:
                return _bad("its query finds something else when it is asked again")
        except _Failed as error:
            return _bad(f"its query fails: {error}")
        if not expected and not item["allow_empty"]:
            return _bad("its query finds no rows")
        ends = _ends(connection, item["query"], expected, columns, *limits)
        try:
            found, width = _executed(connection, item["answer"], item["max_steps"], len(expected))
        except _Failed as error:
            outcome = Outcome.WRONG if error.is_sql else Outcome.UNPARSABLE
            return {"outcome": outcome, "detail": {"reason": str(error)}}
    detail = {"rows": len(found), "expected_rows": len(expected), "ordered": ends is not None}
    if width != columns:
        return {"outcome": Outcome.WRONG, "detail": detail | {"reason": f"it has {width} columns, not {columns}"}}
    same = same_rows(found, expected, ends=ends, relative_tolerance=item["relative_tolerance"])
    return {"outcome": Outcome.CORRECT if same else Outcome.WRONG, "detail": detail}


def _ends(
    connection: sqlite3.Connection, query: str, expected: list[Row], columns: int, max_steps: int, max_rows: int
) -> list[int] | None:
    """Where each group of rows ends that `query` leaves tied; None where it orders nothing."""
    end = end_of_order(query)
    if end is None:
        return None
    every = list(range(1, len(expected) + 1))
    try:
        orders = [_executed(connection, one, max_steps, max_rows)[0] for one in tied_orders(query, end, columns)]
    except _Failed:  # an ORDER BY of another form: the order is taken as it is
        return every
    return tied_rows(*orders) or every


def _opened(schema: str | None, path: str | None, max_steps: int) -> sqlite3.Connection:
    """A connection to the database, which from now on can only be read."""
    if path is not None:
        connection = sqlite3.connect(f"{Path(path).as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    else:
        connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        connection.execute(f"PRAGMA hard_heap_limit={MAX_HEAP_BYTES}")
        connection.execute("PRAGMA temp_store=MEMORY")
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        if schema is not None:
            connection.set_authorizer(_authorize_script)
            connection.set_progress_handler(_counter(max_steps), STEPS_PER_LOOK)
            connection.executescript(schema)
        connection.set_authorizer(_authorize_query)
    except (sqlite3.Error, sqlite3.Warning, MemoryError, UnicodeError, ValueError) as error:
        connection.close()
        raise _failed(error) from None
    return connection


def _executed(connection: sqlite3.Connection, query: str, max_steps: int, max_rows: int) -> tuple[list[Row], int]:
    """The rows that `query` finds, and the number of its columns."""
    connection.set_progress_handler(_counter(max_steps), STEPS_PER_LOOK)
    rows: list[Row] = []
    size = 0
    try:
        with closing(connection.execute(query)) as cursor:
            if cursor.description is None:
                raise _Failed("it is no query")
            for row in cursor:
                size += sum(len(value) if isinstance(value, (str, bytes)) else 8 for value in row)
                if len(rows) == max_rows:
                    raise _Failed(f"it finds more than {max_rows:,} rows")
                if size > MAX_RESULT_BYTES:
                    raise _Failed(f"it finds more than {MAX_RESULT_BYTES:,} bytes")
                rows.append(row)
            return rows, len(cursor.description)
    except (sqlite3.Error, sqlite3.Warning, MemoryError, UnicodeError, ValueError) as error:
        raise _failed(error) from None


def _counter(max_steps: int) -> Callable[[], int]:
    """A progress handler that ends a query after `max_steps`."""
    left = max_steps // STEPS_PER_LOOK + 1

    def look() -> int:
        nonlocal left
        left -= 1
        return left <= 0

    return look


def _authorize_query(action: int, one: str | None, other: str | None, *_: Any) -> int:
    if action in _READING or (action == sqlite3.SQLITE_FUNCTION and (other or "").lower() not in _FORBIDDEN):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _authorize_script(action: int, one: str | None, other: str | None, *_: Any) -> int:
    if action in _NOT_IN_SCRIPTS or (action == sqlite3.SQLITE_FUNCTION and (other or "").lower() in _FORBIDDEN):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (one or "").lower() not in _HARMLESS_PRAGMAS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _failed(error: Exception) -> _Failed:
    if isinstance(error, MemoryError):
        return _Failed("it needs too much memory")
    if str(error) == "interrupted":
        return _Failed("it takes too many steps")
    return _Failed(shown(str(error)), is_sql=not any(sign in str(error) for sign in _NO_SQL))


def _bad(message: str) -> dict[str, Any]:
    return {"outcome": Outcome.BAD_REFERENCE, "message": f"the reference cannot be used: {message}"}
