"""How much each token may ask for: a pure decision over counts and readings of a clock.

What always holds: no more than `queue_items` items are in the service, and no more than `concurrent_items` of one
holder; over any time, a holder's items are at most `items_per_minute` for each minute of it and once more that
many. A refusal says when to come back, unless that would never help.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from quintain.failure import FailureKind, Stage
from quintain.serving.refusals import Refused, refused


@dataclass(slots=True)
class Quotas:
    """The counts. Every method takes the time now, in seconds, where time matters."""

    queue_items: int
    concurrent_items: int
    items_per_minute: float | None = None
    inside: int = 0
    _of: Counter[str] = field(default_factory=Counter)
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)  # how much of the allowance, and when

    def take(self, holder: str, items: int, now: float) -> None:
        """Let `items` of `holder` in. Raises Refused: 429 with a time to wait, or 413 where they never fit."""
        most = min(self.queue_items, self.concurrent_items)
        rate = self.items_per_minute
        if items > most or (rate is not None and items > rate):
            fits = most if rate is None else min(most, math.floor(rate))
            message = f"at most {fits} items at a time for one token, not {items}: send several batches"
            raise refused(message, Stage.VERIFY, FailureKind.TOO_LONG)
        if self._of[holder] + items > self.concurrent_items:
            raise _later(f"this token has {self._of[holder]} of its {self.concurrent_items} items at once in progress")
        if self.inside + items > self.queue_items:
            raise _later(f"{self.inside} of {self.queue_items} places for items are taken")
        if rate is not None:
            spent = self._spent_by(holder, now, rate)
            if spent + items > rate:
                wait_s = (spent + items - rate) * 60 / rate
                raise _later(f"this token's {rate:g} items a minute are used up", math.ceil(wait_s * 10) / 10)
            self._spent[holder] = (spent + items, now)
        self.inside += items
        self._of[holder] += items

    def give_back(self, holder: str, items: int) -> None:
        """`items` of `holder` are done with."""
        self.inside -= items
        self._of[holder] -= items

    def _spent_by(self, holder: str, now: float, rate: float) -> float:
        spent, when = self._spent.get(holder, (0.0, now))
        return max(0.0, spent - (now - when) * rate / 60)


@dataclass(slots=True)
class Admitted:
    """What a holder has of the queue; it is given back as it is done with."""

    quotas: Quotas
    holder: str
    count: int

    def give_back(self, count: int) -> None:
        """`count` items are done with."""
        self.count -= count
        self.quotas.give_back(self.holder, count)


def _later(message: str, retry_after_s: float | None = None) -> Refused:
    return refused(message, Stage.VERIFY, FailureKind.OVERLOADED, retry_after_s=retry_after_s)
