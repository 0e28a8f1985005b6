"""Lockstep: when may an idle engine start, so that its batches do not depend on who arrived first.

Bit-for-bit reproducible runs need the same rows in the same batches every time. Floating-point sums depend on the
shape of the batch they were computed in, so a batch made of whoever has arrived already is a race. A cohort is made
of everybody who may still come:

- it starts only when the engine is idle and as many requests wait as sessions are able to submit;
- it runs to its end, and nobody is admitted meanwhile;
- its rows are in the order of their sessions' names, never in the order of arrival.

Pure: no clock, no lock. The engine tells it what happened and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Cohort:
    """The gate of a lockstep engine. `expected` is the newest count of sessions that are able to submit."""

    expected: int = 0

    def ready(self, waiting: int, running: int) -> bool:
        """Whether the `waiting` requests may start now. More than expected counts as all of them."""
        return running == 0 and waiting > 0 and waiting >= self.expected


def in_order(waiting: Iterable[T], key: Callable[[T], tuple[str, bytes, int]]) -> list[T]:
    """`waiting` by session name, then by what they ask (prompt, seed) where one session asks twice at once."""
    return sorted(waiting, key=key)
