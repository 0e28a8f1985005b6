"""All machines together on a virtual clock: whatever happens, and in whatever order, the journal balances.

Heavy-tailed episodes, failures, dull groups, a slow trainer, crashes and resumes at any event of the journal.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintain.rollout.journal.audit import AuditReport, audit
from quintain.rollout.journal.journal import Journal

from .stage import IDENTITY
from .world import Setup, World

SETUPS = st.builds(
    Setup,
    groups=st.integers(1, 3),
    members=st.integers(2, 3),
    max_staleness=st.integers(0, 2),
    steps=st.integers(1, 4),
    oversample=st.integers(0, 2),
    refills=st.one_of(st.none(), st.integers(0, 4)),
    limit=st.integers(1, 20),
    seed=st.integers(0, 99),
    durations=st.integers(0, 99),
    failing=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    dull=st.sampled_from([0.0, 0.3, 1.0]),
    update_s=st.sampled_from([0.0, 1.0, 50.0]),
    save_every=st.integers(1, 3),
    crashes=st.lists(st.integers(1, 60), max_size=3).map(tuple),
    lone=st.booleans(),
)


def lived(setup: Setup) -> tuple[World, AuditReport]:
    with tempfile.TemporaryDirectory() as folder:
        world = World(setup, Path(folder)).run()
        report = audit(world.path)
        world.folder = Path("gone")
        return world, report


def ends(setup: Setup) -> tuple[dict[int, list[Any]], frozenset[int]]:
    """What each step consumed, and what was dropped on the way."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(setup, Path(folder)).run()
        journal = Journal(world.path, members=setup.members, identity=IDENTITY, oversample=setup.oversample)
        used = journal.used()
        journal.close()
    last = max(place for place, _, step in used if step is not None)
    return world.consumed, frozenset(place for place, _, step in used if step is None and place < last)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETUPS)
def test_whatever_happens_the_books_balance_and_nothing_is_too_old(setup: Setup) -> None:
    world, report = lived(setup)
    assert report.ok, report.problems
    assert sorted(world.consumed) == list(range(setup.steps))
    assert report.consumed == setup.steps * setup.groups
    assert report.issued == report.consumed + sum(report.dropped.values()) + report.ready + len(report.pending)
    assert all(0 <= age <= setup.max_staleness for age in world.ages)
    assert world.most_running <= setup.limit
    used = [place for rows in world.consumed.values() for place, _, _ in rows]
    assert used == sorted(set(used))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETUPS, st.integers(100, 199), st.integers(1, 20))
def test_what_is_consumed_does_not_depend_on_how_long_anything_takes_or_on_crashes(
    setup: Setup, durations: int, limit: int
) -> None:
    calm = replace(setup, crashes=(), durations=durations, limit=limit, update_s=0.0)
    assert ends(setup) == ends(calm)


SMALL = Setup(
    steps=2, oversample=1, refills=2, failing=0.2, dull=0.3, seed=1, save_every=2, limit=3, update_s=1.0
)  # with a drop, a replaced member, and members that wait for a place


@pytest.mark.parametrize("lone", [False, True])
def test_a_crash_at_any_event_of_a_run_changes_nothing_that_it_uses(lone: bool) -> None:
    setup = replace(SMALL, lone=lone)
    calm, report = lived(setup)
    assert report.ok
    assert sum(report.dropped.values()) >= 1
    assert report.replaced >= 1
    for event in range(1, calm.events + 1):
        world, report = lived(replace(setup, crashes=(event,)))
        assert world.lives == 2
        assert report.ok, (event, report.problems)
        assert world.consumed == calm.consumed, f"a crash at event {event} changed what was used"


def test_updates_in_flight_give_trajectories_of_several_versions_and_none_too_old() -> None:
    world, report = lived(Setup(groups=3, members=3, max_staleness=2, steps=6, update_s=1.0))
    assert world.mixed > 0
    assert report.mixed == world.mixed
    assert max(world.ages) == 2
    assert report.ok


def test_a_trainer_that_resumes_from_an_old_checkpoint_gets_fresh_trajectories_for_the_steps_after_it() -> None:
    """What was in flight for step 3 must not be sampled again with the weights of step 0."""
    setup = Setup(max_staleness=0, steps=5, save_every=100)
    events = lived(setup)[0].events
    for crash in range(events // 2, events, 3):
        world, report = lived(replace(setup, crashes=(crash,)))
        assert set(world.ages) == {0}
        assert report.ok
