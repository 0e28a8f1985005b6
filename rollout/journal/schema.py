"""The journal's tables.

Invariant: `make_tables` runs inside one transaction, so a file is a whole journal or none.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quintain.failure import QuintainError
from quintain.rollout.rules.groups import MemberOutcome, MemberStatus
from quintain.trajectory import Trajectory, versions_of

VERSION: Final = 2
"""`PRAGMA user_version`."""
PAGE_BYTES: Final = 16384
"""Trajectories are long: few large pages are written, read and freed quicker than many small ones."""

OUTCOME = "status, scores, tokens, elapsed_s"

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE groups (
    place INTEGER PRIMARY KEY,       -- 0, 1, 2, ... in the order of issue
    task_index INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,      -- policy version
    consumed_at INTEGER,             -- trainer step, null until consumed
    dropped TEXT                     -- why no step will consume it
)""",
    """CREATE TABLE trajectories (
    place INTEGER NOT NULL REFERENCES groups(place),
    member INTEGER NOT NULL,
    status TEXT NOT NULL,
    scores TEXT NOT NULL,            -- what must differ within a group, a JSON list
    tokens INTEGER NOT NULL,
    elapsed_s REAL NOT NULL,
    facts TEXT NOT NULL,             -- what an audit looks at, a JSON object (`Facts`)
    left_out INTEGER NOT NULL DEFAULT 0,  -- failed, an extra took its place
    PRIMARY KEY (place, member)
)""",
    # apart, so that nothing else is read through them, and they can go
    "CREATE TABLE payloads (place INTEGER NOT NULL, member INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE UNIQUE INDEX by_place ON payloads(place, member)",
    "CREATE TABLE plans (from_place INTEGER PRIMARY KEY, plan TEXT NOT NULL)",  # the rules from that place on
    "CREATE INDEX by_step ON groups(consumed_at)",
    f"PRAGMA user_version = {VERSION}",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a trajectory is looked at without it; `failure` is its kind and stage."""

    group: str
    index: int
    seed: int
    member: int
    tokens: int
    failure: str | None
    versions: tuple[int, ...]

    @classmethod
    def of(cls, row: Trajectory) -> Facts:
        """Those of `row`."""
        failure = None if row.failure is None else f"{row.failure.kind}/{row.failure.stage}"
        versions = tuple(sorted(versions_of(row)))
        return cls(row.group, row.index, row.seed, row.member, row.output_tokens, failure, versions)


def check_version(db: sqlite3.Connection, path: Path) -> bool:
    """Whether `db` has its tables. QuintainError for a journal that this quintain did not make."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and version != VERSION:
        raise QuintainError(
            f"the journal {path} is of version {version}, this quintain writes version {VERSION}: start a new run"
        )
    return bool(tables)


def make_tables(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables where there are none, in the caller's transaction."""
    if not check_version(db, path):
        for statement in _TABLES:
            db.execute(statement)


def columns_of(outcome: MemberOutcome) -> tuple[str, str, int, float]:
    """`outcome` as the columns `OUTCOME`."""
    return outcome.status.value, json.dumps(outcome.scores), outcome.tokens, outcome.elapsed_s


def outcome_from(status: str, scores: str, tokens: int, elapsed_s: float) -> MemberOutcome:
    """The outcome that the columns `OUTCOME` hold."""
    return MemberOutcome(MemberStatus(status), tuple(json.loads(scores)), tokens, elapsed_s)
