"""The audit: a journal balances, and every way of cooking them is found and named."""

from __future__ import annotations

import io
import shutil
import sqlite3
from pathlib import Path

import pytest
from rich.console import Console

from quintain.codec import from_json, to_json
from quintain.failure import QuintainError
from quintain.rollout.journal.audit import AuditReport, audit
from quintain.rollout.journal.journal import Journal

from .stage import IDENTITY
from .test_journal import trajectory
from .world import Setup, World


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a run with dropped groups, replaced members and old trajectories."""
    folder = tmp_path_factory.mktemp("audit")
    setup = Setup(max_staleness=1, steps=4, oversample=2, refills=3, failing=0.2, dull=0.3, seed=3)
    return World(setup, folder).run().path


@pytest.fixture
def cooked(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copy(finished, tmp_path / "journal.db"))


def printed(report: AuditReport) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def test_the_books_of_a_run_with_everything_in_it_balance(finished: Path) -> None:
    report = audit(finished)
    assert report.ok, report.problems
    assert report.problems == ()
    assert all(check.looked > 0 for check in report.checks)
    assert len(report.checks) == 12
    assert (report.consumed, report.steps) == (8, 4)
    assert sum(report.dropped.values()) >= 1
    assert report.replaced >= 1
    assert report.failures["crashed/reset"] >= report.replaced
    assert set(report.staleness) == {0, 1}
    assert sum(report.staleness.values()) <= 16
    assert 0 < report.wasted_tokens < report.tokens
    assert report.issued == report.consumed + sum(report.dropped.values()) + report.ready + len(report.pending)


def test_the_table_shows_the_balance_and_the_json_is_the_same_report(finished: Path) -> None:
    report = audit(finished)
    text = printed(report)
    assert "it balances" in " ".join(text.split())  # a long path breaks the title's lines
    assert "+ dropped" in text
    assert "zero_variance" in text
    assert "WRONG" not in text
    assert from_json(to_json(report), AuditReport) == report


CONSUMED = "(SELECT place FROM groups WHERE consumed_at = 1 LIMIT 1)"
DROPPED = "(SELECT place FROM groups WHERE dropped IS NOT NULL LIMIT 1)"


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (f"UPDATE groups SET task_index = 77 WHERE place = {CONSUMED}", "tasks in the seed's order"),
        ("DELETE FROM groups WHERE place = 1", "issued once, in order"),
        (f"UPDATE groups SET dropped = 'too_few' WHERE place = {CONSUMED}", "consumed once, oldest first"),
        (f"UPDATE groups SET consumed_at = NULL WHERE place = {CONSUMED}", "consumed once, oldest first"),
        (f"UPDATE groups SET consumed_at = 3 WHERE place = {CONSUMED}", "consumed once, oldest first"),
        ("UPDATE groups SET consumed_at = 9 WHERE consumed_at = 3", "steps whole"),
        (f"UPDATE groups SET consumed_at = 2 WHERE place = {CONSUMED}", "steps whole"),
        (f"DELETE FROM trajectories WHERE place = {CONSUMED} AND member = 0", "consumed groups whole"),
        (f"UPDATE trajectories SET left_out = 1 WHERE place = {CONSUMED}", "only failed members replaced"),
        ("UPDATE trajectories SET left_out = 0", "consumed groups whole"),
        (
            f"INSERT INTO trajectories SELECT place, 9, status, scores, tokens, elapsed_s, facts, 0 FROM trajectories"
            f" WHERE place = {CONSUMED} AND member = 1",
            "no member too many",
        ),
        (
            f"UPDATE trajectories SET facts = (SELECT facts FROM trajectories WHERE place = 0 AND member = 0)"
            f" WHERE place = {CONSUMED}",
            "records where they belong",
        ),
        (
            f"UPDATE trajectories SET facts = (SELECT facts FROM trajectories WHERE place = 0 AND member = 0)"
            f" WHERE place = {CONSUMED}",
            "seeds as the run's seed says",
        ),
        (f"UPDATE trajectories SET status = 'failed' WHERE place = {CONSUMED}", "records where they belong"),
        ("UPDATE plans SET plan = replace(plan, '\"max_staleness\": 1', '\"max_staleness\": 0')", "staleness"),
        ("UPDATE groups SET consumed_at = consumed_at - 1", "staleness"),
        ("UPDATE groups SET issued_at = 0", "issued when there was room"),
        (f"UPDATE groups SET dropped = 'too_few' WHERE place = {DROPPED}", "dropped for a reason"),
        (f"UPDATE groups SET dropped = 'no fun' WHERE place = {DROPPED}", "dropped for a reason"),
        (f"DELETE FROM trajectories WHERE place = {DROPPED}", "dropped for a reason"),
        ("UPDATE plans SET plan = replace(plan, '\"refills\": 3', '\"refills\": 0')", "dropped for a reason"),
    ],
)
def test_a_cooked_journal_is_found_and_its_check_is_named(cooked: Path, change: str, check: str) -> None:
    with sqlite3.connect(cooked) as db:
        assert db.execute(change).rowcount > 0
    db.close()
    report = audit(cooked)
    assert not report.ok
    assert check in [made.name for made in report.checks if made.wrong]
    assert report.problems
    assert all("\n" not in problem for problem in report.problems)
    assert "IT DOES NOT BALANCE" in " ".join(printed(report).split())


def test_a_run_that_is_going_on_is_seen_as_it_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", members=2, identity=IDENTITY)
    journal.issue(0, 4, 0)
    journal.issue(1, 5, 0)
    journal.record(0, trajectory(0, 1))
    report = audit(tmp_path / "journal.db")
    assert (report.issued, report.trajectories, report.pending) == (2, 1, (0, 1))
    journal.close()


def test_what_is_no_journal_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(QuintainError, match=r"there is no journal at .*none.db: give a run's journal.db"):
        audit(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(QuintainError, match=r"cannot read the journal .*text.db: file is not a database"):
        audit(tmp_path / "text.db")
