"""The journal: what was recorded stays, every place is consumed once, a step is the same when asked again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quintain.codec import pack
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.rollout.journal import Journal
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

IDENTITY: dict[str, object] = {"seed": 0, "split": "train"}


def trajectory(place: int, member: int, reward: float = 1.0) -> Trajectory:
    turn = Turn([1, 2], [place, member], [-0.5, -0.25], Finish.STOP, (VersionSpan(0, 0, 2),), assistant("x"))
    return Trajectory(f"{place}/{member}", f"{place}", "k", place, member, 7, (turn,), Ending.TERMINATED, reward)


class JournalMachine(RuleBasedStateMachine):
    """Any order of issues, records, takes and restarts, against a model in plain dictionaries."""

    members, batch = 2, 2

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.db"
        self.journal = Journal(self.path, members=self.members, identity=IDENTITY)
        self.issued = 0
        self.recorded: dict[tuple[int, int], float] = {}
        self.taken: dict[int, list[int]] = {}

    @rule()
    def issue(self) -> None:
        self.journal.issue(self.issued, self.issued * 3, 0)
        self.issued += 1

    @precondition(lambda self: self.issued > 0)
    @rule(data=st.data(), reward=st.floats(0, 1))
    def record(self, data: st.DataObject, reward: float) -> None:
        place = data.draw(st.integers(0, self.issued - 1))
        member = data.draw(st.integers(0, self.members - 1))
        new = self.journal.record(place, trajectory(place, member, reward))
        assert new == ((place, member) not in self.recorded)
        self.recorded.setdefault((place, member), reward)

    @rule(again=st.booleans())
    def take(self, again: bool) -> None:
        step = max(self.taken, default=0) if again else len(self.taken)
        groups = self.journal.take(step, self.batch)
        if step in self.taken:
            assert groups is not None
            assert [g.index // 3 for g in groups] == self.taken[step]
            return
        oldest = [p for p in range(self.issued) if p not in self._consumed()][: self.batch]
        whole = all((p, m) in self.recorded for p in oldest for m in range(self.members))
        if len(oldest) < self.batch or not whole:
            assert groups is None
            return
        assert groups is not None
        self.taken[step] = oldest
        assert [[t.reward for t in g.trajectories] for g in groups] == [
            [self.recorded[p, m] for m in range(self.members)] for p in oldest
        ]

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, members=self.members, identity=IDENTITY)

    def _consumed(self) -> list[int]:
        return [place for places in self.taken.values() for place in places]

    @invariant()
    def books_reconcile(self) -> None:
        balance = self.journal.balance()
        consumed = self._consumed()
        assert (balance.issued, balance.trajectories, balance.consumed) == (
            self.issued,
            len(self.recorded),
            len(consumed),
        )
        assert balance.consumed <= balance.completed <= balance.issued
        pending = {(p.place, p.member) for p in self.journal.pending()}
        every = {(p, m) for p in range(self.issued) for m in range(self.members)}
        assert pending == every - set(self.recorded)

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
