"""The journal: what has been issued, completed, dropped and consumed, on disk before anybody is told.

Invariants:
- a trajectory that `record` has returned for survives `kill -9` of this process;
- a group is consumed at exactly one step or dropped for one reason, never both; groups are consumed in the order of
  issue, and asking again for a step gives the same groups (so a trainer that starts again from a checkpoint replays
  what it had);
- after a crash, what `window` leaves open is exactly what was issued, is still needed and has not been recorded.

SQLite in WAL mode with `synchronous=NORMAL`: safe against the death of the process, not against a power cut.
Trajectories live here and not in memory, however slow the trainer is: packed once, when they are recorded, and handed
over as packed, until `forget` drops what no trainer will go back to.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintain.codec import from_json, pack, to_json
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.journal import schema
from quintain.rollout.rules.groups import Drop, MemberOutcome, OpenGroup, complete, left_out, outcome_of, wanted
from quintain.rollout.wire import packed_group
from quintain.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Balance:
    """What the journal holds, in groups and trajectories: issued = consumed + dropped + those that wait or run."""

    issued: int
    completed: int
    consumed: int
    trajectories: int
    dropped: int


class Journal:
    """The journal of one run, in the SQLite file `path`, for groups of `members` trajectories.

    A group has at most `oversample` extra members, for those that failed. Every method raises `FailureError` (stage
    journal) where the disk refuses, having changed nothing.
    """

    def __init__(self, path: Path, *, members: int, identity: dict[str, object], oversample: int = 0) -> None:
        self.members, self.oversample = members, oversample
        self._path = path
        with _guarded(path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute(f"PRAGMA page_size={schema.PAGE_BYTES}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            # of whoever reads or drops payloads in a thread, and is not in the way of what is recorded meanwhile
            self._aside = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        with self._transaction():
            schema.make_tables(self._db, path)
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

    def describe(self, plan: Mapping[str, Any]) -> None:
        """Keep under which rules the places from here on are issued, for `audit`."""
        text = json.dumps(dict(plan), sort_keys=True)
        with self._transaction():
            last = self._db.execute("SELECT plan FROM plans ORDER BY from_place DESC LIMIT 1").fetchone()
            if last is None or last[0] != text:
                self._db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?)", (self._next_place(), text))

    def issue(self, place: int, task_index: int, version: int) -> None:
        """A group was started. Places are issued in order, each once."""
        with self._transaction():
            if place != self._next_place():
                raise ValueError(f"the next place is {self._next_place()}, not {place}")
            row = (place, task_index, version)
            self._db.execute("INSERT INTO groups (place, task_index, issued_at) VALUES (?, ?, ?)", row)

    def record(
        self, place: int, trajectory: Trajectory, outcome: MemberOutcome | None = None, packed: bytes | None = None
    ) -> bool:
        """Keep a finished trajectory, which may be `packed` already.

        False if this member was recorded before: the first record stands.
        """
        member, facts = trajectory.member, to_json(schema.Facts.of(trajectory))
        columns = schema.columns_of(outcome or outcome_of(trajectory))
        payload = packed or pack(trajectory)
        with self._transaction():
            cursor = self._db.execute(
                f"INSERT OR IGNORE INTO trajectories (place, member, facts, {schema.OUTCOME})"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (place, member, facts, *columns),
            )
            if cursor.rowcount == 1:
                self._db.execute("INSERT INTO payloads VALUES (?, ?, ?)", (place, member, payload))
            return cursor.rowcount == 1

    def drop(self, place: int, reason: Drop) -> None:
        """No step will consume this complete group; another is issued for it. The first reason stands."""
        with self._transaction():
            self._db.execute(
                "UPDATE groups SET dropped = ? WHERE place = ? AND consumed_at IS NULL AND dropped IS NULL",
                (reason.value, place),
            )

    def take(self, step: int, count: int) -> list[int] | None:
        """The places of the `count` oldest groups that were not dropped, now consumed at `step`.

        None while one is incomplete. A step that was taken before gives the same ones again.
        """
        with self._transaction():
            taken = self._column("SELECT place FROM groups WHERE consumed_at = ? ORDER BY place", step)
            if not taken:
                taken = self._waiting(count)
                outcomes = [self._outcomes(place) for place in taken]
                if len(taken) < count or not all(complete(rows, self.members, self.oversample) for rows in outcomes):
                    return None
                self._db.executemany("UPDATE groups SET consumed_at = ? WHERE place = ?", [(step, p) for p in taken])
                spare = [(p, m) for p, rows in zip(taken, outcomes, strict=True) for m in left_out(rows, self.members)]
                self._db.executemany("UPDATE trajectories SET left_out = 1 WHERE place = ? AND member = ?", spare)
        return taken

    def group(self, place: int) -> bytes:
        """The group at `place`, packed, without what was left out. In any thread.

        Raises FailureError (rejected) where it was forgotten.
        """
        with _guarded(self._path):
            facts = self._used(self._aside, place)
            payloads = [
                payload
                for (payload,) in self._aside.execute(
                    "SELECT payload FROM payloads JOIN trajectories USING (place, member)"
                    " WHERE place = ? AND left_out = 0 ORDER BY member",
                    (place,),
                )
            ]
        if len(payloads) < len(facts):
            message = f"the trajectories of place {place} are in Parquet only: no checkpoint is kept that needs them"
            raise FailureError.of(FailureKind.REJECTED, Stage.JOURNAL, message)
        return packed_group(facts[0].group, facts[0].index, payloads)

    def versions(self, place: int) -> list[tuple[int, ...]]:
        """The policy versions that sampled each trajectory of the group at `place`, without what was left out."""
        return [facts.versions for facts in self._used(self._db, place)]

    def forget(self, before: int) -> None:
        """Drop the trajectories of the steps before `before`, and of the groups dropped till then. In any thread.

        What they came to stays. For a trainer that will not go back so far.
        """
        with _guarded(self._path):
            places = self._aside.execute(
                "SELECT DISTINCT place FROM payloads WHERE place <="
                " (SELECT max(place) FROM groups WHERE consumed_at < ?) AND place NOT IN"
                " (SELECT place FROM groups WHERE consumed_at >= ?)",
                (before, before),
            ).fetchall()
            for place in places:  # one by one: whoever records waits for one at most
                self._aside.execute("DELETE FROM payloads WHERE place = ?", place)

    def was_taken(self, step: int) -> bool:
        """Whether `take` has given `step` its groups before."""
        return bool(self._column("SELECT place FROM groups WHERE consumed_at = ? LIMIT 1", step))

    def progress(self, count: int) -> int:
        """How many trajectories of the groups that a `take` of `count` waits for are recorded, replaced ones not."""
        rows = [self._outcomes(place) for place in self._waiting(count)]
        return sum(len(found) - len(wanted(found, self.members, self.oversample)) + self.members for found in rows)

    def window(self) -> list[OpenGroup]:
        """Every group after the last one consumed, in the order of issue."""
        return self._groups("place > (SELECT coalesce(max(place), -1) FROM groups WHERE consumed_at IS NOT NULL)")

    def done(self, first: int, *, before: int) -> list[OpenGroup]:
        """Every group from `first` up to the last one that a step before `before` consumed, in the order of issue."""
        last = "(SELECT coalesce(max(place), -1) FROM groups WHERE consumed_at < ?)"
        return self._groups(f"place >= ? AND place <= {last}", first, before)

    def balance(self) -> Balance:
        """Counts that must reconcile: consumed + dropped <= completed <= issued."""
        consumed, dropped = self._db.execute("SELECT count(consumed_at), count(dropped) FROM groups").fetchone()
        ready = sum(
            complete(group.outcomes, self.members, self.oversample) for group in self.window() if group.dropped is None
        )
        (trajectories,) = self._db.execute("SELECT count(*) FROM trajectories").fetchone()
        return Balance(self._next_place(), consumed + dropped + ready, consumed, trajectories, dropped)

    def used(self) -> list[tuple[int, int, int | None]]:
        """(place, task index, step or None) of every group issued, in order."""
        return self._db.execute("SELECT place, task_index, consumed_at FROM groups ORDER BY place").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._aside.close()
        self._db.close()

    def _next_place(self) -> int:
        (place,) = self._db.execute("SELECT coalesce(max(place) + 1, 0) FROM groups").fetchone()
        return int(place)

    def _column(self, query: str, value: int) -> list[int]:
        return [number for (number,) in self._db.execute(query, (value,))]

    def _waiting(self, count: int) -> list[int]:
        query = "SELECT place FROM groups WHERE consumed_at IS NULL AND dropped IS NULL ORDER BY place LIMIT ?"
        return self._column(query, count)

    def _groups(self, which: str, *values: int) -> list[OpenGroup]:
        query = f"SELECT place, task_index, dropped FROM groups WHERE {which} ORDER BY place"
        return [
            OpenGroup(place, index, None if dropped is None else Drop(dropped), self._outcomes(place))
            for place, index, dropped in self._db.execute(query, values).fetchall()
        ]

    def _outcomes(self, place: int) -> dict[int, MemberOutcome]:
        query = f"SELECT member, {schema.OUTCOME} FROM trajectories WHERE place = ? ORDER BY member"
        return {row[0]: schema.outcome_from(*row[1:]) for row in self._db.execute(query, (place,))}

    def _used(self, db: sqlite3.Connection, place: int) -> list[schema.Facts]:
        query = "SELECT facts FROM trajectories WHERE place = ? AND left_out = 0 ORDER BY member"
        return [from_json(text, schema.Facts) for (text,) in db.execute(query, (place,))]

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
        raise FailureError.of(FailureKind.RESOURCE, Stage.JOURNAL, message, retryable=False) from error
