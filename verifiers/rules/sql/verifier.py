"""The SQL verifier: both queries are executed on SQLite, and their results compared (execution accuracy, as Spider and
BIRD have it).

The reference is `{"query": …}` with the database it is about, one of
- `"schema"`: a script of CREATE and INSERT statements, executed on a new database in memory for each item;
- `"database"`: the name of a SQLite file in the folder that the option `databases` names, opened read-only.

The answer's query is the last fenced block of SQL, or else the whole answer: one statement that only reads. Score 1
where the results are equal (see `compare`), 0 where they are not, where the query fails, or where
it takes more steps, rows or memory than allowed; a query that is no SQL is `unparsable`. A reference whose own query
fails, exceeds the limits or finds something else when it is asked again (`random()`) is a `bad_reference`.

Where the reference finds no rows, so does many a wrong query: `allow_empty: false` refuses such references.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from quintain.failure import QuintainError
from quintain.fences import last_fence
from quintain.verdict import Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.options import Options, Positive, Seconds, TextOptions, WorkerOptions
from quintain.verifiers.pure import bad_reference, unparsable
from quintain.verifiers.workers.verifier import PooledVerifier

LANGUAGES: Final = frozenset({"sql", "sqlite", "sqlite3", ""})
MAX_QUERY_CHARS: Final = 50_000


class SqlOptions(WorkerOptions, TextOptions):
    """Options of the SQL verifier."""

    databases: str | None = None
    """The folder of the SQLite files that references name; without it they bring their schema."""
    max_rows: Positive = 10_000
    """How many rows a reference's query may find."""
    max_steps: Positive = 10_000_000
    """How many instructions of SQLite's virtual machine a query may take: the same everywhere, unlike a time."""
    relative_tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-9
    """How far two numbers, one of them with a fraction, may differ relative to the larger; 1e-12 is always allowed."""
    allow_empty: bool = True
    """Whether a reference may find no rows at all."""
    deadline_s: Seconds = 10.0
    """Wall time for each item, both queries and the making of the database; more is a `timeout`, and no score."""


class SqlVerifier(PooledVerifier[SqlOptions]):
    """Judges whether two queries find the same."""

    name: ClassVar[str] = "sql"
    options_type: ClassVar[type[Options]] = SqlOptions
    check: ClassVar[str] = "quintain.verifiers.rules.sql.run:check"

    def __init__(self, options: SqlOptions | None = None) -> None:
        super().__init__(options)
        self._folder: Path | None = None
        if self.options.databases is not None:
            self._folder = Path(self.options.databases).resolve()
            if not self._folder.is_dir():
                raise QuintainError(f"the sql verifier: databases is a folder, and {self.options.databases!r} is none")

    @property
    def version(self) -> str:
        """Our own version of the judgement, and SQLite's."""
        return f"1+sqlite-{sqlite3.sqlite_version}"

    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """What the worker is asked."""
        reference, options = item.reference, self.options
        if not isinstance(reference, dict) or not isinstance(reference.get("query"), str):
            return bad_reference('{"query": SQL} with its "schema" or "database"', reference)
        schema, database = reference.get("schema"), reference.get("database")
        path = None
        if isinstance(database, str) and schema is None:
            path = self._path(database)
            if path is None:
                return bad_reference("about a file in the folder that the option databases names", database)
        elif not isinstance(schema, str) or database is not None:
            return bad_reference('{"query": SQL} with its "schema", a script, or its "database", a name', reference)
        text = options.answer_in(item.answer)
        query = text and (last_fence(text, LANGUAGES) or text).strip()
        if not query:
            return unparsable("there is no query in the answer")
        if len(query) > MAX_QUERY_CHARS:
            return unparsable(f"the query has {len(query):,} characters, and at most {MAX_QUERY_CHARS:,} are read")
        return {
            "answer": query,
            "query": reference["query"],
            "schema": schema,
            "path": path,
            "max_rows": options.max_rows,
            "max_steps": options.max_steps,
            "relative_tolerance": options.relative_tolerance,
            "allow_empty": options.allow_empty,
        }

    def _path(self, name: str) -> str | None:
        """The file called `name`, if it is one within the folder, symbolic links followed."""
        if self._folder is None or "\0" in name or not name:
            return None
        try:
            path = (self._folder / name).resolve()
            return str(path) if path.is_relative_to(self._folder) and path.is_file() else None
        except (OSError, ValueError):
            return None
