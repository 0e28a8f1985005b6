"""A journal as its auditor sees it: places and what was recorded for each, and what must hold of them.

Invariants:
- the journal is only read, in one transaction, so a run that is going on is seen at one moment;
- the checks are pure functions from the places to findings, and believe nothing that they can compute: the order of
  the tasks follows from the seed, the seeds of the episodes from their places, ages from the tokens' versions.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from quintain.codec import from_json
from quintain.failure import QuintainError
from quintain.rollout.journal import schema
from quintain.rollout.rules.groups import MemberOutcome, MemberStatus, complete, left_out, rewards_of, teaches, wanted
from quintain.rollout.rules.order import TaskOrder, TaskSplit, derive_seed


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was written down of a trajectory; `spare` says that an extra member was used in its place."""

    outcome: MemberOutcome
    spare: bool
    facts: schema.Facts


@dataclass(frozen=True, slots=True)
class IssuedRules:
    """The plan under which places were issued, as far as what is recorded depends on it."""

    splits: tuple[TaskSplit, ...]
    seed: int
    groups: int
    members: int
    max_staleness: int
    oversample: int
    refills: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """One group: when it was issued, what became of it, and what its members were. `rules` None: they are not known."""

    place: int
    task_index: int
    issued_at: int
    consumed_at: int | None
    dropped: str | None
    members: int
    oversample: int
    rules: IssuedRules | None
    recorded: dict[int, Recorded]

    @property
    def outcomes(self) -> dict[int, MemberOutcome]:
        """What the members came to."""
        return {member: recorded.outcome for member, recorded in self.recorded.items()}

    @property
    def complete(self) -> bool:
        """Whether every member that is needed has ended."""
        return complete(self.outcomes, self.members, self.oversample)

    @property
    def used(self) -> dict[int, Recorded]:
        """The members that the trainer was given, or would be."""
        return {member: recorded for member, recorded in self.recorded.items() if not recorded.spare}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`check` was looked at once, and held or did not; `problem` says what was expected and what came."""

    check: str
    holds: bool
    problem: str


def read_places(path: Path) -> list[Place]:
    """Every place of the journal at `path`, in order. QuintainError where there is no journal."""
    if not path.is_file():
        raise QuintainError(f"there is no journal at {path}: give a run's journal.db")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            schema.check_version(db, path)
            return list(_places(db))
    except sqlite3.Error as error:
        raise QuintainError(f"cannot read the journal {path}: {error}") from None


def _places(db: sqlite3.Connection) -> Iterator[Place]:
    identity = dict(db.execute("SELECT key, value FROM meta")).get("identity", "{}")
    members = int(json.loads(identity).get("members", 0))
    plans = db.execute("SELECT * FROM plans ORDER BY from_place DESC")
    known = [(at, from_json(text, IssuedRules)) for at, text in plans]
    query = "SELECT place, task_index, issued_at, consumed_at, dropped FROM groups ORDER BY place"
    for place, index, issued_at, consumed_at, why in db.execute(query):
        rules = next((rules for at, rules in known if at <= place), None)
        recorded = dict(_recorded(db, place))
        oversample = known[0][1].oversample if known else 0
        if consumed_at is not None and len({rules.oversample for _, rules in known}) > 1:
            oversample = sum(member.spare for member in recorded.values())  # it was changed: who knows when
        yield Place(place, index, issued_at, consumed_at, why, members, oversample, rules, recorded)


def _recorded(db: sqlite3.Connection, place: int) -> Iterator[tuple[int, Recorded]]:
    for member, facts, spare, *outcome in db.execute(
        f"SELECT member, facts, left_out, {schema.OUTCOME} FROM trajectories WHERE place = ? ORDER BY member", (place,)
    ):
        yield member, Recorded(schema.outcome_from(*outcome), bool(spare), from_json(facts, schema.Facts))


def _the_rules(places: list[Place]) -> IssuedRules | None:
    """The rules of the whole run, None where they changed on the way."""
    found = {place.rules for place in places if place.rules is not None}
    return found.pop() if len(found) == 1 else None


def issued_in_order(places: list[Place]) -> Iterator[CheckResult]:
    """Every place once, in order."""
    for at, place in enumerate(places):
        yield CheckResult(
            "issued once, in order", place.place == at, f"place {at} is missing: {place.place} comes next"
        )


def tasks_in_order(places: list[Place]) -> Iterator[CheckResult]:
    """The tasks that the seed's order says, and, under a curriculum, what the steps before had come to."""
    consumed = [place for place in places if place.consumed_at is not None]
    rules, order, learned, version = None, TaskOrder((), 0), 0, 0
    for at, place in enumerate(places):
        if place.rules is None:
            continue
        if place.rules != rules or place.issued_at < version:  # as a scheduler begins again with the journal
            rules, order, learned = place.rules, TaskOrder(place.rules.splits, place.rules.seed), 0
            for earlier in places[:at] if order.follows_what_is_measured else ():
                order.issued(earlier.place, earlier.task_index)
        version = place.issued_at
        if order.follows_what_is_measured:
            steps = bisect_left(consumed, version, key=lambda done: done.consumed_at or 0)
            last = consumed[steps - 1].place if steps else -1
            for earlier in (earlier for earlier in places[learned:at] if earlier.place <= last):
                order.measured(earlier.place, earlier.task_index, rewards_of(earlier.outcomes))
                learned += 1
        _, due = order.at(place.place)
        problem = f"place {place.place} has task {place.task_index}, the seed's order says {due}"
        yield CheckResult("tasks in the seed's order", place.task_index == due, problem)
        order.issued(place.place, place.task_index)


def admitted_in_time(places: list[Place]) -> Iterator[CheckResult]:
    """The staleness rule when a place was issued; what was dropped since only makes room."""
    rank, rules = 0, _the_rules(places)
    for place in places:
        if rules is not None and place.dropped is None:
            due = rank // rules.groups - rules.max_staleness
            problem = f"place {place.place} was issued at version {place.issued_at}, before {due} it had no room"
            yield CheckResult("issued when there was room", place.issued_at >= due, problem)
        rank += place.dropped is None


def consumed_in_order(places: list[Place]) -> Iterator[CheckResult]:
    """Consumed once or dropped, oldest first, none passed over."""
    name = "consumed once, oldest first"
    consumed = [(place.place, place.consumed_at) for place in places if place.consumed_at is not None]
    last = consumed[-1][0] if consumed else -1
    for place in places:
        if place.consumed_at is not None:
            yield CheckResult(
                name, place.dropped is None, f"place {place.place} was dropped, and consumed all the same"
            )
        elif place.place < last:
            yield CheckResult(name, place.dropped is not None, f"place {place.place} was passed over and not dropped")
    for (one, before), (other, after) in pairwise(consumed):
        problem = f"place {one} went to step {before}, and place {other} to step {after}"
        yield CheckResult(name, before <= after, problem)


def steps_whole(places: list[Place]) -> Iterator[CheckResult]:
    """Steps 0, 1, 2, ... each of as many groups as the plan says."""
    steps: dict[int, list[Place]] = {}
    for place in places:
        if place.consumed_at is not None:
            steps.setdefault(place.consumed_at, []).append(place)
    for at, step in enumerate(sorted(steps)):
        yield CheckResult("steps whole", step == at, f"step {at} is missing: {step} comes next")
        due = {place.rules.groups for place in steps[step] if place.rules is not None}
        problem = f"step {step} has {len(steps[step])} groups, the plan says {sorted(due)}"
        yield CheckResult("steps whole", not due or len(steps[step]) in due, problem)


def members_whole(places: list[Place]) -> Iterator[CheckResult]:
    """Every consumed group has its members, and only failed ones gave way to extras."""
    for place in places:
        needed = wanted(place.outcomes, place.members, place.oversample)
        extra = [member for member in place.recorded if member not in needed]
        yield CheckResult(
            "no member too many", not extra, f"place {place.place} has members {extra} that it never needed"
        )
        if place.consumed_at is not None:
            problem = f"place {place.place} was consumed with members {list(place.used)}, not with {place.members}"
            whole = place.complete and len(place.used) == place.members
            yield CheckResult("consumed groups whole", whole, problem)
            spare = {member for member, recorded in place.recorded.items() if recorded.spare}
            due = set(left_out(place.outcomes, place.members))
            problem = f"place {place.place} left out members {sorted(spare)}, the rule says {sorted(due)}"
            yield CheckResult("only failed members replaced", spare == due, problem)


def records_true(places: list[Place]) -> Iterator[CheckResult]:
    """Every record is of the place it stands at: its group, task, member, seed and outcome."""
    for place in places:
        for member, recorded in place.recorded.items():
            at = f"the record of place {place.place}, member {member}"
            found = (recorded.facts.group, recorded.facts.index, recorded.facts.member)
            due = (f"{place.place:08d}", place.task_index, member)
            yield CheckResult("records where they belong", found == due, f"{at} says group, task, member {found}")
            failed = recorded.outcome.status is not MemberStatus.OK
            said = f"{at} is booked as {recorded.outcome.status}, its failure is {recorded.facts.failure}"
            yield CheckResult("records where they belong", failed == (recorded.facts.failure is not None), said)
            if place.rules is not None:
                seed = derive_seed(place.rules.seed, "episode", place.place, member)
                problem = f"{at} has seed {recorded.facts.seed}, the run's seed says {seed}"
                yield CheckResult("seeds as the run's seed says", recorded.facts.seed == seed, problem)


def fresh_enough(places: list[Place]) -> Iterator[CheckResult]:
    """No consumed token is older than allowed, or newer than the step that consumed it."""
    allowed = max((place.rules.max_staleness for place in places if place.rules is not None), default=None)
    for place in places:
        for member, recorded in place.used.items() if place.consumed_at is not None else ():
            if recorded.facts.versions:
                assert place.consumed_at is not None
                age = place.consumed_at - min(recorded.facts.versions)
                at = f"place {place.place}, member {member}, consumed at step {place.consumed_at}"
                if allowed is not None:
                    problem = f"{at}, is {age} versions old, {allowed} are allowed"
                    yield CheckResult("staleness", age <= allowed, problem)
                newest = max(recorded.facts.versions)
                yield CheckResult("staleness", newest <= place.consumed_at, f"{at}, has tokens of version {newest}")


def drops_justified(places: list[Place]) -> Iterator[CheckResult]:
    """Dropped groups are complete and teach nothing, as their reason says, and no step dropped too many."""
    used: Counter[int] = Counter()
    rules = _the_rules(places)
    kept = 0
    for place in places:
        if place.dropped is None:
            kept += 1
            continue
        reason = teaches(place.outcomes) if place.complete else None
        problem = f"place {place.place} was dropped for {place.dropped}, its members say {reason or 'that it teaches'}"
        yield CheckResult("dropped for a reason", reason is not None and place.dropped == reason.value, problem)
        if rules is not None:
            step = kept // rules.groups
            used[step] += 1
            problem = f"step {step} dropped {used[step]} groups, {rules.refills} are allowed"
            yield CheckResult("dropped for a reason", used[step] <= (rules.refills or 0), problem)


CHECKS: tuple[Callable[[list[Place]], Iterator[CheckResult]], ...] = (
    issued_in_order,
    tasks_in_order,
    admitted_in_time,
    consumed_in_order,
    steps_whole,
    members_whole,
    records_true,
    fresh_enough,
    drops_justified,
)
"""Everything that must hold."""
