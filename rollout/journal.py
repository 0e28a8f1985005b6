"""The journal: what has been issued, completed and consumed, on disk before anybody is told.

Invariants:
- a trajectory that `record` has returned for survives `kill -9` of this process;
- a group is consumed at exactly one step, groups are consumed in the order of issue, and asking again for a step
  gives the same groups (so a trainer that starts again from a checkpoint replays what it had);
- after a crash, `pending` is exactly what was issued and has not been recorded.

SQLite in WAL mode with `synchronous=NORMAL`: safe against the death of the process, not against a power cut.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quintain.codec import pack, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.trajectory import Group, Trajectory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS groups (
    place INTEGER PRIMARY KEY,       -- 0, 1, 2, ... in the order of issue
    task_index INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,      -- policy version
    consumed_at INTEGER              -- trainer step, null until consumed
);
CREATE TABLE IF NOT EXISTS trajectories (
    place INTEGER NOT NULL REFERENCES groups(place),
    member INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (place, member)
);
CREATE INDEX IF NOT EXISTS by_step ON groups(consumed_at);
"""


@dataclass(frozen=True, slots=True)
class Pending:
    """A trajectory that was issued and has not been recorded."""

    place: int
    task_index: int
    member: int


@dataclass(frozen=True, slots=True)
class Balance:
    """The journal's books, in groups and trajectories."""

    issued: int
    completed: int
    consumed: int
    trajectories: int
    steps: int


class Journal:
    """The journal of one run, in the SQLite file `path`, for groups of `members` trajectories.

    Every method raises `FailureError` (stage journal) where the disk refuses, having changed nothing.
    """

    def __init__(self, path: Path, *, members: int, identity: dict[str, object]) -> None:
        self.members = members
        with _guarded(path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        self._path = path
        self._check_identity(json.dumps({**identity, "members": members}, sort_keys=True))

    def _check_identity(self, identity: str) -> None:
        with self._transaction():
            row = self._db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
            if row is None:
                self._db.execute("INSERT INTO meta VALUES ('identity', ?)", (identity,))
            elif row[0] != identity:
                raise QuintainError(
                    f"the journal {self._path} belongs to another experiment ({row[0]}), this one is {identity}:"
                    " resume with the same seed, split and group size, or start a new run"
                )

    def issue(self, place: int, task_index: int, version: int) -> None:
        """A group was started. Places are issued in order, each once."""
        with self._transaction():
            if place != self._count("groups"):
                raise ValueError(f"the next place is {self._count('groups')}, not {place}")
            self._db.execute("INSERT INTO groups VALUES (?, ?, ?, NULL)", (place, task_index, version))

    def record(self, place: int, trajectory: Trajectory) -> bool:
        """Keep a finished trajectory. False if this member was recorded before: the first record stands."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO trajectories VALUES (?, ?, ?)",
                (place, trajectory.member, pack(trajectory)),
            )
            return cursor.rowcount == 1

    def take(self, step: int, count: int) -> list[Group] | None:
        """The `count` oldest groups, now consumed at `step`; None while one of them is incomplete.

        A step that was taken before gives the same groups again.
        """
        with self._transaction():
            taken = self._places("consumed_at = ?", step)
            if not taken:
                places = self._places("consumed_at IS NULL ORDER BY place LIMIT ?", count)
                done = sum(self._recorded(place) == self.members for place in places)
                if len(places) < count or done < count:
                    return None
                self._db.executemany("UPDATE groups SET consumed_at = ? WHERE place = ?", [(step, p) for p in places])
                taken = places
        return [self._group(place) for place in taken]

    def progress(self, step: int, count: int) -> int:
        """How many trajectories of the groups that `take(step, count)` waits for are recorded."""
        places = self._places("consumed_at IS NULL ORDER BY place LIMIT ?", count)
        return sum(self._recorded(place) for place in places)

    def pending(self) -> list[Pending]:
        """What was issued and not recorded, in the order of issue."""
        rows = self._db.execute(
            "SELECT place, task_index FROM groups g WHERE consumed_at IS NULL AND "
            "(SELECT count(*) FROM trajectories t WHERE t.place = g.place) < ? ORDER BY place",
            (self.members,),
        ).fetchall()
        out = []
        for place, index in rows:
            found = {m for (m,) in self._db.execute("SELECT member FROM trajectories WHERE place = ?", (place,))}
            out += [Pending(place, index, member) for member in range(self.members) if member not in found]
        return out

    def balance(self) -> Balance:
        """Counts that must reconcile: consumed <= completed <= issued."""
        complete = "SELECT count(*) FROM (SELECT place FROM trajectories GROUP BY place HAVING count(*) = ?)"
        (completed,) = self._db.execute(complete, (self.members,)).fetchone()
        (consumed, steps) = self._db.execute(
            "SELECT count(consumed_at), count(DISTINCT consumed_at) FROM groups"
        ).fetchone()
        return Balance(self._count("groups"), completed, consumed, self._count("trajectories"), steps)

    def used(self) -> list[tuple[int, int, int | None]]:
        """(place, task index, step or None) of every group issued, in order."""
        return self._db.execute("SELECT place, task_index, consumed_at FROM groups ORDER BY place").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _count(self, table: str) -> int:
        (n,) = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(n)

    def _places(self, where: str, value: int) -> list[int]:
        query = f"SELECT place FROM groups WHERE {where}"
        return sorted(place for (place,) in self._db.execute(query, (value,)))

    def _recorded(self, place: int) -> int:
        (n,) = self._db.execute("SELECT count(*) FROM trajectories WHERE place = ?", (place,)).fetchone()
        return int(n)

    def _group(self, place: int) -> Group:
        query = "SELECT payload FROM trajectories WHERE place = ? ORDER BY member"
        rows: list[Trajectory] = [unpack(data, Trajectory) for (data,) in self._db.execute(query, (place,))]
        (index,) = self._db.execute("SELECT task_index FROM groups WHERE place = ?", (place,)).fetchone()
        return Group(rows[0].group, index, tuple(rows))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _guarded(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Turn what the disk says into a failure with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        message = f"cannot write the journal {path}: {error}; free space on its disk, then resume"
        raise FailureError(Failure.of(FailureKind.RESOURCE, Stage.JOURNAL, message, retryable=False)) from error
