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

from quintain.codec import pack, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.groups import Drop, MemberOutcome, MemberStatus, wanted
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

IDENTITY: dict[str, object] = {"seed": 0, "split": "train"}


def trajectory(place: int, member: int, reward: float | None = 1.0) -> Trajectory:
    turn = Turn([1, 2], [place, member], [-0.5, -0.25], Finish.STOP, (VersionSpan(0, 0, 2),), assistant("x"))
    failure = None if reward is not None else Failure.of(FailureKind.CRASHED, Stage.STEP, "broke")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    return Trajectory(f"{place}/{member}", f"{place}", "k", place, member, 7, (turn,), ending, reward, failure)


def pending(journal: Journal) -> list[tuple[int, int]]:
    """The (place, member) of what was issued, is needed and is not recorded, in the order of issue."""
    return [
        (group.place, member)
        for group in journal.window()
        if group.dropped is None
        for member in wanted(group.outcomes, journal.members, journal.oversample)
        if member not in group.outcomes
    ]


def groups_at(journal: Journal, places: list[int]) -> list[Group]:
    return [unpack(journal.group(place), Group) for place in places]


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
        self.forgotten = 0  # steps before

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
        places = self.journal.take(step, self.batch)
        if step not in self.taken:
            left = [p for p in range(self.issued) if p not in self._consumed() and p not in self.dropped]
            oldest = left[: self.batch]
            if len(oldest) < self.batch or not all(self._whole(place) for place in oldest):
                assert places is None
                return
            self.taken[step] = oldest
        assert places == self.taken[step]
        if step < self.forgotten:
            with pytest.raises(FailureError, match="in Parquet only"):
                self.journal.group(places[0])
            return
        groups = groups_at(self.journal, places)
        assert [g.index for g in groups] == self.taken[step]
        assert [[t.reward for t in g.trajectories] for g in groups] == [
            [self.recorded[place, member] for member in self._used(place)] for place in self.taken[step]
        ]

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        before = data.draw(st.integers(0, len(self.taken)))
        self.journal.forget(before)
        self.forgotten = max(self.forgotten, before)

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
        assert set(pending(self.journal)) == self._missing()
        waiting = [p for p in range(self.issued) if p not in consumed and p not in self.dropped][: self.batch]
        missing = [key for key in self._missing() if key[0] in waiting]
        assert self.journal.progress(self.batch) == len(waiting) * self.members - len(missing)

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
    assert journal.take(0, len(told)) == told
    assert [pack(g.trajectories[0]) for g in groups_at(journal, told)] == [pack(trajectory(place, 0)) for place in told]


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
    assert pending(journal) == [(1, 0), (2, 0)]
    journal._db.execute("PRAGMA max_page_count = 100000")
    assert journal.record(1, trajectory(1, 0), big)
    assert journal.take(0, 2) is not None


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", members=2, identity=IDENTITY).close()
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(QuintainError, match="is of version 9, this quintain writes version 2: start a new run"):
        Journal(tmp_path / "j.db", members=2, identity=IDENTITY)
    with pytest.raises(QuintainError, match="is of version 9"):
        audit(tmp_path / "j.db")


def test_a_journal_is_no_larger_than_what_a_trainer_may_still_go_back_to(tmp_path: Path) -> None:
    journal, path = Journal(tmp_path / "j.db", members=1, identity=IDENTITY), tmp_path / "j.db"
    row, sizes = trajectory(0, 0), []
    for place in range(60):
        journal.issue(place, place, 0)
        journal.record(place, replace(row, group=f"{place:08d}", info={"noise": os.urandom(100_000).hex()}))
        assert journal.take(place, 1) == [place]
        journal.forget(place - 3)
        journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(path.stat().st_size)
    assert max(sizes[10:]) == sizes[10], sizes
    assert [group.trajectories[0].group for group in groups_at(journal, [57, 58, 59])] == [
        f"{place:08d}" for place in (57, 58, 59)
    ]
    with pytest.raises(FailureError, match="place 3 are in Parquet only"):
        journal.group(3)
    assert journal.balance().trajectories == 60
    assert audit(path).trajectories == 60


def test_a_trajectory_that_is_packed_is_not_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j.db", members=1, identity=IDENTITY)
    journal.issue(0, 0, 0)
    packed = pack(trajectory(0, 0))
    monkeypatch.setattr("quintain.rollout.journal.journal.pack", None)
    journal.record(0, trajectory(0, 0), packed=packed)
    assert journal.take(0, 1) == [0]
    assert packed in journal.group(0), "as it is"


def test_a_dropped_group_is_never_taken_and_keeps_its_first_reason(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", members=1, identity=IDENTITY)
    for place in range(2):
        journal.issue(place, place, 0)
        journal.record(place, trajectory(place, 0))
    journal.drop(0, Drop.TOO_FEW)
    journal.drop(0, Drop.ZERO_VARIANCE)
    assert [group.dropped for group in journal.window()] == [Drop.TOO_FEW, None]
    assert journal.take(0, 1) == [1]
    journal.drop(1, Drop.TOO_FEW)
    assert journal.balance().dropped == 1, "what is consumed is not dropped"
