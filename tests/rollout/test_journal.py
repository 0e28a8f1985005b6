"""The journal: what was recorded stays, every place is consumed once, a step is the same when asked again."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quintain.codec import pack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.journal import Journal, Pending
from quintain.rollout.rules.groups import Drop, MemberOutcome, MemberStatus
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

IDENTITY: dict[str, object] = {"seed": 0, "split": "train"}


def trajectory(place: int, member: int, reward: float | None = 1.0) -> Trajectory:
    turn = Turn([1, 2], [place, member], [-0.5, -0.25], Finish.STOP, (VersionSpan(0, 0, 2),), assistant("x"))
    failure = None if reward is not None else Failure.of(FailureKind.CRASHED, Stage.STEP, "broke")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    return Trajectory(f"{place}/{member}", f"{place}", "k", place, member, 7, (turn,), ending, reward, failure)


class JournalMachine(RuleBasedStateMachine):
    """Any order of issues, records, failures, drops, takes and restarts, against a model in plain dictionaries."""

    members, extras, batch = 2, 1, 2

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.db"
        self.journal = self.opened()
        self.issued = 0
        self.recorded: dict[tuple[int, int], float | None] = {}
        self.taken: dict[int, list[int]] = {}
        self.dropped: set[int] = set()

    def opened(self) -> Journal:
        return Journal(self.path, members=self.members, identity=IDENTITY, oversample=self.extras)

    @rule()
    def issue(self) -> None:
        self.journal.issue(self.issued, self.issued * 3, 0)
        self.issued += 1

    @precondition(lambda self: self._missing())
    @rule(data=st.data(), reward=st.one_of(st.none(), st.floats(0, 1)))
    def record(self, data: st.DataObject, reward: float | None) -> None:
        place, member = data.draw(st.sampled_from(sorted(self._missing())))
        assert self.journal.record(place, trajectory(place, member, reward))
        assert not self.journal.record(place, trajectory(place, member, 0.125)), "the first record stands"
        self.recorded[place, member] = reward

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        whole = [place for place in range(self.issued) if self._whole(place) and place not in self._consumed()]
        if whole:
            place = data.draw(st.sampled_from(whole))
            self.journal.drop(place, Drop.ZERO_VARIANCE)
            self.dropped.add(place)

    @rule(again=st.booleans())
    def take(self, again: bool) -> None:
        step = max(self.taken, default=0) if again else len(self.taken)
        assert self.journal.was_taken(step) == (step in self.taken)
        groups = self.journal.take(step, self.batch)
        if step not in self.taken:
            left = [p for p in range(self.issued) if p not in self._consumed() and p not in self.dropped]
            oldest = left[: self.batch]
            if len(oldest) < self.batch or not all(self._whole(place) for place in oldest):
                assert groups is None
                return
            self.taken[step] = oldest
        assert groups is not None
        assert [g.index // 3 for g in groups] == self.taken[step]
        assert [[t.reward for t in g.trajectories] for g in groups] == [
            [self.recorded[place, member] for member in self._used(place)] for place in self.taken[step]
        ]

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = self.opened()

    def _consumed(self) -> list[int]:
        return [place for places in self.taken.values() for place in places]

    def _needed(self, place: int) -> range:
        failed = any(self.recorded.get((place, member), 0.0) is None for member in range(self.members + self.extras))
        return range(self.members + failed)

    def _whole(self, place: int) -> bool:
        return all((place, member) in self.recorded for member in self._needed(place))

    def _used(self, place: int) -> list[int]:
        """All but the first that failed, where there is an extra."""
        ended = list(self._needed(place))
        failed = [member for member in ended if self.recorded[place, member] is None]
        return [member for member in ended if member not in failed[: len(ended) - self.members]]

    def _missing(self) -> set[tuple[int, int]]:
        every = {(p, m) for p in range(self.issued) if p not in self.dropped for m in self._needed(p)}
        return every - set(self.recorded)

    @invariant()
    def books_reconcile(self) -> None:
        balance = self.journal.balance()
        consumed = self._consumed()
        assert (balance.issued, balance.trajectories, balance.consumed, balance.dropped) == (
            self.issued,
            len(self.recorded),
            len(consumed),
            len(self.dropped),
        )
        assert balance.completed == sum(self._whole(place) for place in range(self.issued))
        assert {(p.place, p.member) for p in self.journal.pending()} == self._missing()
        waiting = [p for p in range(self.issued) if p not in consumed and p not in self.dropped][: self.batch]
        missing = [key for key in self._missing() if key[0] in waiting]
        assert self.journal.progress(0, self.batch) == len(waiting) * self.members - len(missing)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()


JournalMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJournal = JournalMachine.TestCase


def test_a_recorded_trajectory_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_journal import IDENTITY, Journal, trajectory
journal = Journal(Path({str(path)!r}), members=1, identity=IDENTITY)
place = 0
while True:
    journal.issue(place, place, 0); journal.record(place, trajectory(place, 0)); print(place, flush=True); place += 1
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    told = seen + [int(line) for line in child.stdout.read().splitlines() if line.isdigit()]
    child.wait()
    journal = Journal(path, members=1, identity=IDENTITY)
    groups = journal.take(0, len(told))
    assert groups is not None
    assert [pack(g.trajectories[0]) for g in groups] == [pack(trajectory(place, 0)) for place in told]


def test_places_are_issued_in_order_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", members=1, identity=IDENTITY)
    journal.issue(0, 0, 0)
    for place in (0, 2):
        with pytest.raises(ValueError, match="the next place is 1"):
            journal.issue(place, 0, 0)


def test_a_journal_of_another_experiment_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", members=2, identity=IDENTITY).close()
    with pytest.raises(QuintainError, match="belongs to another experiment"):
        Journal(tmp_path / "j.db", members=4, identity=IDENTITY)


def test_a_file_that_is_no_journal_is_a_failure_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(FailureError) as caught:
        Journal(tmp_path / "j.db", members=2, identity=IDENTITY)
    assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.RESOURCE, Stage.JOURNAL)


def test_a_full_disk_loses_nothing_that_was_acknowledged_and_the_journal_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "j.db", members=1, identity=IDENTITY)
    for place in range(3):
        journal.issue(place, place, 0)
    journal.record(0, trajectory(0, 0))
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    big = MemberOutcome(MemberStatus.OK, (0.5,) * 100_000)
    with pytest.raises(
        FailureError, match=r"cannot write the journal .* free space on its disk, then resume"
    ) as caught:
        journal.record(1, trajectory(1, 0), big)
    assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.RESOURCE, Stage.JOURNAL)
    assert journal.pending() == [Pending(1, 1, 0), Pending(2, 2, 0)]
    journal._db.execute("PRAGMA max_page_count = 100000")
    assert journal.record(1, trajectory(1, 0), big)
    assert journal.take(0, 2) is not None


OLD_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE groups (place INTEGER PRIMARY KEY, task_index INTEGER NOT NULL, issued_at INTEGER NOT NULL,
                     consumed_at INTEGER);
CREATE TABLE trajectories (place INTEGER NOT NULL REFERENCES groups(place), member INTEGER NOT NULL,
                           payload BLOB NOT NULL, PRIMARY KEY (place, member));
CREATE INDEX by_step ON groups(consumed_at);
INSERT INTO meta VALUES ('identity', '{"members": 2, "seed": 0, "split": "train"}');
INSERT INTO groups VALUES (0, 5, 0, 0), (1, 6, 0, NULL), (2, 7, 1, NULL);
"""


def old_journal(path: Path) -> None:
    """A journal as the first version left it: one group consumed, one complete, one half done."""
    with sqlite3.connect(path) as db:
        db.executescript(OLD_TABLES)
        for place, member, reward in [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.5), (1, 1, None), (2, 1, 1.0)]:
            row = replace(trajectory(place, member, reward), group=f"{place:08d}", index=place + 5)
            db.execute("INSERT INTO trajectories VALUES (?, ?, ?)", (place, member, pack(row)))
    db.close()


def test_a_journal_of_the_first_version_is_read_as_it_is_and_goes_on_under_the_new_rules(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    old_journal(path)
    before = path.read_bytes()
    report = audit(path)
    assert report.ok, report.problems
    assert (report.issued, report.consumed, report.ready, report.pending) == (3, 1, 1, (2,))
    assert path.read_bytes() == before, "an audit changes nothing"

    journal = Journal(path, members=2, identity=IDENTITY, oversample=1)
    assert journal.pending() == [Pending(1, 6, 2), Pending(2, 7, 0)]
    journal.record(1, trajectory(1, 2, 0.25))
    groups = journal.take(1, 1)
    assert groups is not None
    assert [t.reward for t in groups[0].trajectories] == [0.5, 0.25]
    first = journal.take(0, 1)
    assert first is not None
    assert [t.reward for t in first[0].trajectories] == [1.0, 0.0]
    journal.drop(2, Drop.TOO_FEW)
    assert journal.balance().dropped == 1
    journal.close()
    Journal(path, members=2, identity=IDENTITY, oversample=1).close()


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", members=2, identity=IDENTITY).close()
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(QuintainError, match="is of version 9, this quintain writes version 1"):
        Journal(tmp_path / "j.db", members=2, identity=IDENTITY)


def test_a_dropped_group_is_never_taken_and_keeps_its_first_reason(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", members=1, identity=IDENTITY)
    for place in range(2):
        journal.issue(place, place, 0)
        journal.record(place, trajectory(place, 0))
    journal.drop(0, Drop.TOO_FEW)
    journal.drop(0, Drop.ZERO_VARIANCE)
    assert [group.dropped for group in journal.window()] == [Drop.TOO_FEW, None]
    groups = journal.take(0, 1)
    assert groups is not None
    assert [group.index for group in groups] == [1]
    journal.drop(1, Drop.TOO_FEW)
    assert journal.balance().dropped == 1, "what is consumed is not dropped"
