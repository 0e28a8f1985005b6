"""The journal's tables, and how a journal of an earlier version becomes one of this.

Invariants: `bring_up_to_date` runs inside one transaction, so a journal is of one version or the next, never between;
nothing that was recorded changes, only what can be computed from it is added.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from quintain.codec import unpack
from quintain.failure import QuintainError
from quintain.rollout.rules.groups import MemberOutcome, MemberStatus, outcome_of
from quintain.trajectory import Trajectory

VERSION = 1
"""`PRAGMA user_version`: 0 knew no dropped groups, no extra members and no plans."""

OUTCOME = "status, scores, tokens, elapsed_s"

_TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS groups (
    place INTEGER PRIMARY KEY,       -- 0, 1, 2, ... in the order of issue
    task_index INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,      -- policy version
    consumed_at INTEGER              -- trainer step, null until consumed
)""",
    """CREATE TABLE IF NOT EXISTS trajectories (
    place INTEGER NOT NULL REFERENCES groups(place),
    member INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (place, member)
)""",
    "CREATE INDEX IF NOT EXISTS by_step ON groups(consumed_at)",
)

_TO_1 = (
    "ALTER TABLE groups ADD COLUMN dropped TEXT",  # why no step will consume it
    "ALTER TABLE trajectories ADD COLUMN status TEXT",
    "ALTER TABLE trajectories ADD COLUMN scores TEXT",  # what must differ within a group, a JSON list
    "ALTER TABLE trajectories ADD COLUMN tokens INTEGER",
    "ALTER TABLE trajectories ADD COLUMN elapsed_s REAL",
    "ALTER TABLE trajectories ADD COLUMN left_out INTEGER NOT NULL DEFAULT 0",  # failed, an extra took its place
    "CREATE TABLE plans (from_place INTEGER PRIMARY KEY, plan TEXT NOT NULL)",  # the rules from that place on
)


def version_of(db: sqlite3.Connection) -> int:
    """The version of the journal in `db`."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables that are missing, in the caller's transaction. QuintainError for a journal of a newer version."""
    version = version_of(db)
    if version > VERSION:
        raise QuintainError(
            f"the journal {path} is of version {version}, this quintain writes version {VERSION}: use the newer one"
        )
    for statement in _TABLES:
        db.execute(statement)
    if version < 1:
        for statement in _TO_1:
            db.execute(statement)
        _fill_in(db)
    db.execute(f"PRAGMA user_version = {VERSION}")


def columns_of(outcome: MemberOutcome) -> tuple[str, str, int, float]:
    """`outcome` as the columns `OUTCOME`."""
    return outcome.status.value, json.dumps(outcome.scores), outcome.tokens, outcome.elapsed_s


def outcome_from(status: str, scores: str, tokens: int, elapsed_s: float) -> MemberOutcome:
    """The outcome that the columns `OUTCOME` hold."""
    return MemberOutcome(MemberStatus(status), tuple(json.loads(scores)), tokens, elapsed_s)


def _fill_in(db: sqlite3.Connection) -> None:
    keys = db.execute("SELECT place, member FROM trajectories WHERE status IS NULL").fetchall()
    for place, member in keys:
        where = (place, member)
        (payload,) = db.execute("SELECT payload FROM trajectories WHERE place = ? AND member = ?", where).fetchone()
        columns = columns_of(outcome_of(unpack(payload, Trajectory)))
        db.execute(
            "UPDATE trajectories SET status = ?, scores = ?, tokens = ?, elapsed_s = ? WHERE place = ? AND member = ?",
            (*columns, *where),
        )
