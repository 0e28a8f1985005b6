"""Admission and the journal, together: staleness is never exceeded, every place is used exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.rollout.admission import Admission
from quintain.rollout.tasks import derive_seed, task_index


@given(st.integers(1, 6), st.integers(0, 3), st.data())
def test_a_trajectory_is_never_older_than_allowed_when_it_is_consumed(
    batch: int, max_staleness: int, data: st.DataObject
) -> None:
    """Any interleaving of starts, and of steps once the oldest `batch` trajectories are started."""
    admission = Admission(batch, max_staleness).advance(0)
    admitted_at: list[int] = []
    for _ in range(60):
        if admission.room and data.draw(st.booleans(), label="start"):
            admission = admission.issue(1)
            admitted_at.append(admission.version)
        step = admission.version
        if len(admitted_at) >= (step + 1) * batch and data.draw(st.booleans(), label="consume"):
            oldest = admitted_at[step * batch : (step + 1) * batch]
            assert max(step - version for version in oldest) <= max_staleness
            admission = admission.advance(step + 1)
    assert admission.room >= 0


@given(st.integers(1, 8), st.integers(0, 3))
def test_the_trainer_never_waits_for_what_may_not_start(batch: int, max_staleness: int) -> None:
    admission = Admission(batch, max_staleness).advance(0)
    for version in range(5):
        assert admission.room + admission.issued >= (version + 1) * batch
        admission = admission.issue(admission.room).advance(version + 1)


def test_nothing_starts_before_the_first_weights() -> None:
    assert Admission(8, 4).room == 0
    with pytest.raises(ValueError, match="there is room for 0"):
        Admission(8, 4).issue(1)


def test_a_version_never_goes_back() -> None:
    with pytest.raises(ValueError, match="cannot go back from 3 to 2"):
        Admission(8, 0).advance(3).advance(2)


@given(st.integers(1, 40), st.integers(0, 2**31 - 1), st.booleans())
def test_each_epoch_visits_every_task_once(size: int, seed: int, shuffle: bool) -> None:
    for epoch in range(3):
        places = range(epoch * size, (epoch + 1) * size)
        assert sorted(task_index(p, size, seed=seed, shuffle=shuffle) for p in places) == list(range(size))


def test_an_endless_source_is_taken_in_order_and_an_empty_one_is_refused() -> None:
    assert [task_index(p, None, seed=1, shuffle=True) for p in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="holds no task"):
        task_index(0, 0, seed=1, shuffle=True)


def test_derived_seeds_differ_and_do_not_change() -> None:
    assert derive_seed(0, "episode", 1, 2) == 2293477028633009156
    seeds = {derive_seed(0, "episode", place, member) for place in range(100) for member in range(8)}
    assert len(seeds) == 800
    assert derive_seed("1", "2") != derive_seed("12")
