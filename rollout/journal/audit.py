"""The audit: does the journal of a run balance? For a run that ended, crashed or goes on.

`audit(path)` reads a journal and gives an `AuditReport`: the balance (issued = consumed + dropped + ready + pending),
the checks with how often each was made and how often it failed, and a line for every problem. What must hold, and how
it is computed, is in `checks.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quintain.rollout.journal.checks import CHECKS, Place, read_places

if TYPE_CHECKING:
    from rich.table import Table

PROBLEMS_TOLD = 50
"""Problems that are told one by one; `Check.wrong` counts the others."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold: how often it was looked at, and how often it did not."""

    name: str
    looked: int
    wrong: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a journal says. Numbers of groups and trajectories; tokens are sampled ones."""

    journal: str
    issued: int  # groups
    consumed: int
    dropped: dict[str, int]  # by reason
    ready: int  # complete, their step has not come
    pending: tuple[int, ...]  # places with members under way, run again on resume
    steps: int
    trajectories: int  # recorded
    failures: dict[str, int]  # of them, by kind and stage
    replaced: int  # failed members of consumed groups that an extra stands in for
    staleness: dict[int, int]  # consumed ones, by the age of their oldest token in versions
    mixed: int  # consumed ones with tokens of more than one version
    tokens: int
    wasted_tokens: int  # of failed trajectories and of dropped groups
    checks: tuple[Check, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that can be checked holds."""
        return not any(check.wrong for check in self.checks)

    def table(self) -> Table:
        """The balance and the checks, for a console."""
        from rich.table import Table

        table = Table(title=f"{self.journal}: " + ("it balances" if self.ok else "IT DOES NOT BALANCE"))
        table.add_column("")
        table.add_column("", justify="right")
        table.add_column("")
        for what, count, note in self._balance():
            table.add_row(what, f"{count:,}", note)
        table.add_section()
        for check in self.checks:
            table.add_row(check.name, f"{check.looked:,}", f"{check.wrong:,} WRONG" if check.wrong else "ok")
        return table

    def _balance(self) -> list[tuple[str, int, str]]:
        return [
            ("groups issued", self.issued, ""),
            ("= consumed", self.consumed, f"in {self.steps} steps"),
            ("+ dropped", sum(self.dropped.values()), _listed(self.dropped)),
            ("+ ready", self.ready, "complete, their step has not come"),
            ("+ pending", len(self.pending), "under way; run again on resume"),
            ("trajectories recorded", self.trajectories, ""),
            ("of them failed", sum(self.failures.values()), _listed(self.failures)),
            ("replaced by an extra", self.replaced, ""),
            ("consumed, by staleness", sum(self.staleness.values()), _listed(self.staleness)),
            ("consumed, of several versions", self.mixed, ""),
            ("tokens sampled", self.tokens, f"{self.wasted_tokens:,} that no loss sees"),
        ]


def audit(path: Path | str) -> AuditReport:
    """Check the journal at `path`. Raises QuintainError where there is none, or it cannot be read."""
    places = read_places(Path(path))
    looked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    problems: list[str] = []
    for check in CHECKS:
        for finding in check(places):
            looked[finding.check] += 1
            if not finding.holds:
                wrong[finding.check] += 1
                problems.append(finding.problem)
    checks = tuple(Check(name, count, wrong[name]) for name, count in looked.items())
    return _report(str(path), places, checks, tuple(problems[:PROBLEMS_TOLD]))


def _report(name: str, places: list[Place], checks: tuple[Check, ...], problems: tuple[str, ...]) -> AuditReport:
    consumed = [place for place in places if place.consumed_at is not None]
    open_places = [place for place in places if place.consumed_at is None and place.dropped is None]
    recorded = [recorded for place in places for recorded in place.recorded.values()]
    used = [(place.consumed_at or 0, recorded) for place in consumed for recorded in place.used.values()]
    ages = Counter(step - min(recorded.facts.versions) for step, recorded in used if recorded.facts.versions)
    lost = [
        r.facts.tokens
        for place in places
        for r in place.recorded.values()
        if r.facts.failure or place.dropped is not None
    ]
    return AuditReport(
        journal=name,
        issued=len(places),
        consumed=len(consumed),
        dropped=dict(Counter(place.dropped for place in places if place.dropped is not None)),
        ready=sum(place.complete for place in open_places),
        pending=tuple(place.place for place in open_places if not place.complete),
        steps=len({place.consumed_at for place in consumed}),
        trajectories=len(recorded),
        failures=dict(Counter(row.facts.failure for row in recorded if row.facts.failure is not None)),
        replaced=sum(row.spare for place in consumed for row in place.recorded.values()),
        staleness=dict(sorted(ages.items())),
        mixed=sum(len(row.facts.versions) > 1 for _, row in used),
        tokens=sum(row.facts.tokens for row in recorded),
        wasted_tokens=sum(lost),
        checks=checks,
        problems=problems,
    )


def _listed(counts: dict[str, int] | dict[int, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
