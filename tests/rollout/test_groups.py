"""Groups: who is in one and which are dropped is a function of outcomes and order, never of who finished first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintain.failure import Failure, FailureKind, Stage
from quintain.messages import assistant
from quintain.rollout.rules.groups import (
    Drop,
    Groups,
    MemberOutcome,
    MemberStatus,
    Patience,
    Rewards,
    Rules,
    Standing,
    complete,
    judge,
    left_out,
    outcome_of,
    teaches,
    wanted,
)
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

OK, FAILED, STRAGGLER = MemberStatus.OK, MemberStatus.FAILED, MemberStatus.STRAGGLER


def outcome(status: MemberStatus, score: float = 0.0, elapsed_s: float = 1.0) -> MemberOutcome:
    return MemberOutcome(status, (score,) if status is OK else (), 5, elapsed_s)


def trajectory(reward: float | None, **parts: float) -> Trajectory:
    turn = Turn([1], [2, 3], [-1.0, -1.0], Finish.STOP, (VersionSpan(0, 0, 2),), assistant("x"))
    failure = None if reward is not None else Failure.of(FailureKind.CRASHED, Stage.STEP, "broke")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    return Trajectory("i", "g", "t", 0, 0, 1, (turn,), ending, reward, failure, parts, elapsed_s=2.0)


STATUSES = st.lists(st.sampled_from(list(MemberStatus)), min_size=12, max_size=12)


@given(st.integers(1, 6), st.integers(0, 4), STATUSES, st.randoms())
def test_the_members_of_a_group_are_the_same_in_whatever_order_they_end(
    members: int, oversample: int, statuses: list[MemberStatus], random: object
) -> None:
    def play(pick: object) -> tuple[list[int], list[int]]:
        ended: dict[int, MemberOutcome] = {}
        while not complete(ended, members, oversample):
            missing = [member for member in wanted(ended, members, oversample) if member not in ended]
            assert len(missing) <= members  # never more in flight than a group has
            member = missing[0] if pick is None else pick.choice(missing)  # type: ignore[attr-defined]
            ended[member] = outcome(statuses[member])
        spare = left_out(ended, members)
        return sorted(ended), sorted(set(ended) - spare)

    started, used = play(random)
    assert (started, used) == play(None)
    assert len(used) == members
    lived = [member for member in started if statuses[member] is OK]
    assert set(lived) <= set(used), "a member with a reward is never left out"
    slow = [member for member in started if statuses[member] is STRAGGLER]
    assert set(slow) <= set(used), "nobody stands in for one that was slow"
    assert len(started) == members or sum(statuses[m] is FAILED for m in started) >= len(started) - members


def test_an_extra_member_starts_when_one_failed_and_not_before() -> None:
    assert list(wanted({}, 3, 2)) == [0, 1, 2]
    assert list(wanted({0: outcome(OK), 1: outcome(STRAGGLER)}, 3, 2)) == [0, 1, 2]
    assert list(wanted({1: outcome(FAILED)}, 3, 2)) == [0, 1, 2, 3]
    assert list(wanted({m: outcome(FAILED) for m in range(4)}, 3, 2)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([(OK, 1.0), (OK, 0.0)], None),
        ([(OK, 0.3), (OK, 0.1 + 0.2)], Drop.ZERO_VARIANCE),
        ([(OK, 0.0), (OK, 0.0)], Drop.ZERO_VARIANCE),
        ([(OK, 1.0), (OK, 1.0), (FAILED, 0.0)], Drop.ZERO_VARIANCE),
        ([(OK, 1.0), (FAILED, 0.0), (STRAGGLER, 0.0)], Drop.TOO_FEW),
        ([(FAILED, 0.0), (FAILED, 0.0)], Drop.TOO_FEW),
        ([(OK, 1.0), (OK, math.nan)], None),
        ([(OK, math.nan), (OK, 1.0)], None),
    ],
)
def test_a_group_teaches_nothing_without_two_different_rewards(
    outcomes: Sequence[tuple[MemberStatus, float]], reason: Drop | None
) -> None:
    assert teaches({at: outcome(*each) for at, each in enumerate(outcomes)}) == reason


def test_rewards_are_compared_as_the_trainer_compares_them() -> None:
    row = trajectory(1.5, right=1.0, brief=0.5)
    assert Rewards().of(row) == (1.5,)
    assert Rewards((("right", 2.0), ("brief", -2.0))).of(row) == (1.0,)
    assert Rewards((("right", 2.0), ("brief", -2.0)), apart=True).of(row) == (2.0, -1.0)
    assert math.isnan(Rewards((("wrong", 1.0),)).of(row)[0])
    apart = [MemberOutcome(OK, (1.0, 0.0)), MemberOutcome(OK, (0.0, 1.0))]
    assert teaches(dict(enumerate(apart))) is None, "equal in sum, and not apart"


def test_the_outcome_of_a_failure_has_no_reward() -> None:
    assert outcome_of(trajectory(None)) == MemberOutcome(FAILED, (), 2, 2.0)
    assert outcome_of(trajectory(None), straggler=True, elapsed_s=9.0) == MemberOutcome(STRAGGLER, (), 2, 9.0)
    assert outcome_of(trajectory(0.25)) == MemberOutcome(OK, (0.25,), 2, 2.0)


def in_order(ends: Sequence[Standing], groups: int, refills: int) -> list[int]:
    """What is dropped if every group has ended: the rule as its sentence has it."""
    drops, kept, used = [], 0, 0
    for at, end in enumerate(ends):
        if end is Standing.DULL and used < refills:
            drops.append(at)
            used += 1
        else:
            kept += 1
            if kept == groups:
                kept = used = 0
    return drops


ENDS = st.lists(st.sampled_from([Standing.USEFUL, Standing.DULL]), max_size=14)


@settings(max_examples=200, deadline=None)
@given(ENDS, st.integers(1, 4), st.integers(0, 5), st.data())
def test_what_is_dropped_does_not_depend_on_who_finished_first(
    ends: list[Standing], groups: int, refills: int, data: st.DataObject
) -> None:
    now = [Standing.OPEN] * len(ends)
    dropped: set[int] = set()
    for at in data.draw(st.permutations(range(len(ends)))):
        now[at] = ends[at]
        for drop in judge(now, groups=groups, refills=refills):
            assert now[drop] is Standing.DULL
            now[drop] = Standing.DROPPED
            dropped.add(drop)
        assert judge(now, groups=groups, refills=refills) == [], "a decision is made once"
    assert sorted(dropped) == in_order(ends, groups, refills)


def test_a_dull_group_is_dropped_before_an_older_open_one_ends_while_refills_are_left_either_way() -> None:
    window = [Standing.OPEN, Standing.DULL]
    assert judge(window, groups=2, refills=2) == [1]
    assert judge(window, groups=2, refills=1) == []  # the open one may need the last refill


def test_refills_are_counted_a_step() -> None:
    dull, useful = Standing.DULL, Standing.USEFUL
    assert judge([dull, dull, useful, dull, useful], groups=2, refills=1) == [0, 3]
    assert judge([dull] * 6, groups=1, refills=0) == []


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.one_of(st.none(), st.integers(0, 3)), st.data())
def test_groups_hand_over_every_place_once_and_in_order(
    groups: int, members: int, oversample: int, refills: int | None, data: st.DataObject
) -> None:
    machine = Groups(Rules(groups, members, oversample, refills))
    issued, taken, dropped = 0, [], set()
    for _ in range(60):
        running = [(p, m) for p in machine.places() for m in machine.missing(p)]
        act = data.draw(st.sampled_from(["issue", *(["end"] * 3 if running else []), "take"]))
        if act == "issue":
            machine.issue(issued, issued * 7)
            issued += 1
        elif act == "end":
            place, member = data.draw(st.sampled_from(running))
            status = data.draw(st.sampled_from([OK, FAILED]))
            machine.record(place, member, outcome(status, data.draw(st.sampled_from([0.0, 1.0]))))
            for at, reason in machine.drops():
                assert machine.drop(at, reason) >= 0
                dropped.add(at)
        elif machine.ready():
            step = [place for place in machine.places() if not machine.is_dropped(place)][:groups]
            assert all(machine.missing(place) == [] for place in step)
            machine.take()
            taken += step
    assert taken == [place for place in range(issued) if place not in dropped][: len(taken)]
    assert not (dropped and refills is None)
    assert set(machine.places()) >= set(range(issued)) - set(taken) - dropped
    assert all(machine.task_index(place) == place * 7 for place in machine.places())


def test_nobody_is_a_straggler_before_half_of_the_peers_have_finished_and_the_floor_has_passed() -> None:
    patience = Patience(factor=3.0, floor_s=10.0)
    assert patience.limit_s([], 4) == math.inf
    assert patience.limit_s([1.0], 4) == math.inf
    assert patience.limit_s([1.0, 2.0], 4) == 10.0
    assert patience.limit_s([10.0, 20.0, 60.0], 4) == 60.0
