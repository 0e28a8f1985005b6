"""Groups: from the outcomes of episodes to the G trajectories of a task that a step may use.

Three rules, none of which looks at how long anything took, so that long episodes are used as often as short ones:
- **over-sampling**: a member that *failed* is replaced by an extra one, while the group has extras left. An extra is
  started when a member fails and never to overtake one that is slow: taking the first G of G + n to finish would
  fill batches with short episodes. So nothing is sampled in vain either.
- **dynamic sampling** (DAPO, arXiv 2503.14476): a complete group that teaches nothing, because its rewards are all
  equal or fewer than two of its members did not fail, is dropped and another group is issued for it, at most
  `refills` times a step; after that groups are used as they are.
- **stragglers**: by default the group waits. Where the user asks for it, an episode far slower than its finished
  peers ends as a failure. That does favour short episodes, and no extra member stands in for one that ended so.

Invariants: which members make up a group, and which groups are dropped, are functions of what the episodes returned
and of the order of issue, never of the order in which they returned it; a decision, once made, stands.

Pure: outcomes in, decisions out. The journal keeps what is recorded, and `Groups` can be made again from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice, zip_longest
from statistics import median

from quintain.trajectory import Trajectory, by_seat

ROUNDING = 1e-12
"""Rewards that differ by less than this share of the largest are equal, here and to the trainer: the rest is float64
rounding, which dividing by a standard deviation would blow up."""


class MemberStatus(StrEnum):
    """How a member ended."""

    OK = "ok"  # with a reward
    FAILED = "failed"
    STRAGGLER = "straggler"  # failed, because it was far slower than its peers


class Drop(StrEnum):
    """Why a complete group was dropped."""

    ZERO_VARIANCE = "zero_variance"  # every reward is the same: every advantage would be zero
    TOO_FEW = "too_few"  # fewer than two members did not fail: there is nothing to compare


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """What the rules need of a finished trajectory; `scores` must differ within a group for it to teach anything."""

    status: MemberStatus
    scores: tuple[float, ...] = ()
    tokens: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rewards:
    """Which rewards the trainer compares: the whole one; the weighted sum of named parts; or each of them `apart`."""

    weights: tuple[tuple[str, float], ...] = ()
    apart: bool = False

    def of(self, trajectory: Trajectory) -> tuple[float, ...]:
        """What is compared of `trajectory`; NaN (equal to nothing) for a part that the environment did not name.

        Of several seats each is compared with itself.
        """
        if not self.weights:
            seats = by_seat(trajectory)
            return tuple(reward for agent in sorted(seats) if (reward := seats[agent].reward) is not None)
        parts = [weight * trajectory.rewards.get(name, math.nan) for name, weight in self.weights]
        return tuple(parts) if self.apart else (sum(parts),)


def outcome_of(
    trajectory: Trajectory, rewards: Rewards = Rewards(), *, straggler: bool = False, elapsed_s: float | None = None
) -> MemberOutcome:
    """What the rules need of `trajectory`; `elapsed_s` counts all of its attempts, by default the last one."""
    took = trajectory.elapsed_s if elapsed_s is None else elapsed_s
    if trajectory.failure is None:
        return MemberOutcome(MemberStatus.OK, rewards.of(trajectory), trajectory.output_tokens, took)
    status = MemberStatus.STRAGGLER if straggler else MemberStatus.FAILED
    return MemberOutcome(status, (), trajectory.output_tokens, took)


@dataclass(frozen=True, slots=True)
class Rules:
    """`groups` of `members` a step; `oversample` extras a group; `refills` groups dropped a step, None: none ever."""

    groups: int
    members: int
    oversample: int = 0
    refills: int | None = None


def wanted(outcomes: Mapping[int, MemberOutcome], members: int, oversample: int) -> range:
    """The members that the group needs: the first `members`, and an extra for each that failed."""
    failed = sum(outcome.status is MemberStatus.FAILED for outcome in outcomes.values())
    return range(members + min(oversample, failed))


def complete(outcomes: Mapping[int, MemberOutcome], members: int, oversample: int) -> bool:
    """Whether every member that the group needs has ended."""
    return all(member in outcomes for member in wanted(outcomes, members, oversample))


def left_out(outcomes: Mapping[int, MemberOutcome], members: int) -> frozenset[int]:
    """The members of a complete group that are not handed over: the first that failed, one for each extra."""
    failed = [member for member in sorted(outcomes) if outcomes[member].status is MemberStatus.FAILED]
    return frozenset(failed[: max(0, len(outcomes) - members)])


def teaches(outcomes: Mapping[int, MemberOutcome]) -> Drop | None:
    """Why a complete group teaches nothing, None if it does."""
    rows = [outcome.scores for outcome in outcomes.values() if outcome.status is MemberStatus.OK]
    if len(rows) < 2:
        return Drop.TOO_FEW
    return Drop.ZERO_VARIANCE if all(_equal(column) for column in zip_longest(*rows, fillvalue=math.nan)) else None


def rewards_of(outcomes: Mapping[int, MemberOutcome]) -> list[float]:
    """The reward of each member that did not fail."""
    return [sum(outcome.scores) for outcome in outcomes.values() if outcome.status is MemberStatus.OK]


def _equal(values: Sequence[float]) -> bool:
    if any(math.isnan(value) for value in values):
        return False
    return max(values) - min(values) <= ROUNDING * max(abs(value) for value in values)


class Standing(StrEnum):
    """Where a group stands when dynamic sampling looks at it."""

    OPEN = "open"
    USEFUL = "useful"
    DULL = "dull"  # complete, and teaches nothing
    DROPPED = "dropped"


def judge(window: Sequence[Standing], *, groups: int, refills: int) -> list[int]:
    """Which of the `window`'s groups (in the order of issue, from the start of a step) are dropped now.

    A step takes the first `groups` that are not dropped. Group by group, in order, a dull one is dropped while its
    step has refills left. Behind an open group it is dropped early only if it would be however the open ones end:
    if counting each of them as dropped leaves refills. So the answer never depends on who finished first.
    """
    drops: list[int] = []
    kept = used = 0  # of the step; behind an open group `used` is the most it can be
    settled = True
    for at, standing in enumerate(window):
        settled = settled and standing is not Standing.OPEN
        if standing is Standing.DULL and used < refills:
            drops.append(at)
            used += 1
        elif standing is Standing.DROPPED or (not settled and standing is not Standing.USEFUL):
            used += 1
        elif settled:
            kept += 1
            if kept == groups:
                kept = used = 0
    return drops


@dataclass(frozen=True, slots=True)
class Patience:
    """When an episode is a straggler: after `factor` times the median of its finished peers, and `floor_s` at least."""

    factor: float
    floor_s: float

    def limit_s(self, peers_s: Sequence[float], members: int) -> float:
        """How long an episode of a group of `members` may take; infinite until half of its peers have finished."""
        if 2 * len(peers_s) < members:
            return math.inf
        return max(self.floor_s, self.factor * median(peers_s))


@dataclass(slots=True)
class OpenGroup:
    """A group that no step has consumed yet, as it stands."""

    place: int
    task_index: int
    dropped: Drop | None = None
    outcomes: dict[int, MemberOutcome] = field(default_factory=dict)


class Groups:
    """The groups that are not consumed yet, in the order of issue; outcomes only, trajectories are in the journal."""

    def __init__(self, rules: Rules, window: Iterable[OpenGroup] = ()) -> None:
        self.rules = rules
        self._window = {group.place: group for group in window}

    def __contains__(self, place: int) -> bool:
        """Whether the group is issued and not consumed."""
        return place in self._window

    def places(self) -> list[int]:
        """The places that are not consumed, in order, dropped ones included."""
        return list(self._window)

    def issue(self, place: int, task_index: int) -> None:
        """A group was issued, after all others."""
        self._window[place] = OpenGroup(place, task_index)

    def task_index(self, place: int) -> int:
        """Which task the group is about."""
        return self._window[place].task_index

    def missing(self, place: int) -> list[int]:
        """The members that the group needs and that have not ended; none of a group that was dropped."""
        group, rules = self._window[place], self.rules
        if group.dropped is not None:
            return []
        return [m for m in wanted(group.outcomes, rules.members, rules.oversample) if m not in group.outcomes]

    def record(self, place: int, member: int, outcome: MemberOutcome) -> None:
        """A member ended. The first outcome of a member stands."""
        self._window[place].outcomes.setdefault(member, outcome)

    def replaced(self, place: int) -> int:
        """How many failed members have an extra in their place."""
        group, rules = self._window[place], self.rules
        return len(wanted(group.outcomes, rules.members, rules.oversample)) - rules.members

    def drops(self) -> list[tuple[int, Drop]]:
        """The groups to drop now, with the reason. Say `drop` for each once that is on disk."""
        if self.rules.refills is None:
            return []
        window = list(self._window.values())
        found = judge([self._standing(group) for group in window], groups=self.rules.groups, refills=self.rules.refills)
        return [(window[at].place, teaches(window[at].outcomes) or Drop.ZERO_VARIANCE) for at in found]

    def drop(self, place: int, reason: Drop) -> int:
        """The group is dropped; the number of its tokens that would have been trained on."""
        self._window[place].dropped = reason
        return sum(o.tokens for o in self._window[place].outcomes.values() if o.status is MemberStatus.OK)

    def is_dropped(self, place: int) -> bool:
        """Whether the group was dropped."""
        return self._window[place].dropped is not None

    def ready(self) -> bool:
        """Whether the next step's groups are complete."""
        step = self._step()
        return len(step) == self.rules.groups and all(self._complete(group) for group in step)

    def take(self) -> None:
        """The next step's groups were consumed: they, and what was dropped before them, are done with."""
        last = self._step()[-1].place
        for place in [place for place in self._window if place <= last]:
            del self._window[place]

    def finished_s(self, place: int) -> list[float]:
        """How long the members took that ended with a reward."""
        return [o.elapsed_s for o in self._window[place].outcomes.values() if o.status is MemberStatus.OK]

    def _step(self) -> list[OpenGroup]:
        return list(islice((g for g in self._window.values() if g.dropped is None), self.rules.groups))

    def _complete(self, group: OpenGroup) -> bool:
        return complete(group.outcomes, self.rules.members, self.rules.oversample)

    def _standing(self, group: OpenGroup) -> Standing:
        if group.dropped is not None:
            return Standing.DROPPED
        if not self._complete(group):
            return Standing.OPEN
        return Standing.USEFUL if teaches(group.outcomes) is None else Standing.DULL
