"""Admission and the journal, together: staleness is never exceeded, every place is used exactly once."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintain.rollout.rules.admission import Admission
from quintain.rollout.rules.order import derive_seed, task_index


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


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 4), st.integers(0, 3), st.data())
def test_dropped_trajectories_make_room_and_none_is_too_old_all_the_same(
    batch: int, max_staleness: int, data: st.DataObject
) -> None:
    """Any interleaving of starts, drops of what is not consumed, and steps that take the oldest not dropped."""
    admission = Admission(batch, max_staleness).advance(0)
    admitted_at: list[int] = []
    dropped: set[int] = set()
    consumed: set[int] = set()
    for _ in range(40):
        act = data.draw(st.sampled_from(["start", "start", "drop", "consume"]), label="act")
        waiting = [place for place in range(len(admitted_at)) if place not in dropped | consumed]
        if act == "start" and admission.room:
            admission = admission.issue(1)
            admitted_at.append(admission.version)
        elif act == "drop" and waiting:
            dropped.add(data.draw(st.sampled_from(waiting), label="place"))
            admission = admission.drop(1)
        elif act == "consume" and len(waiting) >= batch:
            assert all(admission.version - admitted_at[place] <= max_staleness for place in waiting[:batch])
            consumed |= set(waiting[:batch])
            admission = admission.advance(admission.version + 1)
        left = len(admitted_at) - len(dropped) - len(consumed)
        assert left + admission.room == (max_staleness + 1) * batch, "room is exactly what the rule leaves"


def test_more_cannot_be_dropped_than_is_there() -> None:
    with pytest.raises(ValueError, match="cannot drop 3 trajectories: 2 are there"):
        Admission(2, 0).advance(0).issue(2).drop(3)


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


def test_the_order_is_another_one_for_every_seed_and_epoch_and_any_task_may_be_first() -> None:
    size = 7
    orders = {
        tuple(task_index(epoch * size + at, size, seed=seed, shuffle=True) for at in range(size))
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) > 300, "of 5,040 there are, 400 were drawn"
    assert {order[0] for order in orders} == set(range(size))


def test_finding_a_place_s_task_takes_no_longer_in_a_source_of_a_thousand_million() -> None:
    def seconds(size: int) -> float:
        began = time.perf_counter()
        for place in range(300):
            task_index(place, size, seed=1, shuffle=True)
        return time.perf_counter() - began

    assert min(seconds(10**9) for _ in range(5)) < 20 * min(seconds(10) for _ in range(5))
    assert len({task_index(place, 10**9, seed=1, shuffle=True) for place in range(1000)}) == 1000


def test_an_endless_source_is_taken_in_order_and_an_empty_one_is_refused() -> None:
    assert [task_index(p, None, seed=1, shuffle=True) for p in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="holds no task"):
        task_index(0, 0, seed=1, shuffle=True)


def test_derived_seeds_differ_and_do_not_change() -> None:
    assert derive_seed(0, "episode", 1, 2) == 2293477028633009156
    seeds = {derive_seed(0, "episode", place, member) for place in range(100) for member in range(8)}
    assert len(seeds) == 800
    assert derive_seed("1", "2") != derive_seed("12")
