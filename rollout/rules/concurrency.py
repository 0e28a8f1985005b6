"""Concurrency: how many episodes may run at once, so that the engine is never starved and never thrashes.

Fast growth, multiplicative cuts, as in congestion control. It says how many run, never which: see `gate.py`.
Invariants:
- the limit stays between `least` and `most`; where the engine does not report its KV cache it is `most` and stays;
- it grows only while it binds, nothing waits in the engine and the cache has room; then it always grows, by half of
  what would fill the cache to `ROOM` at today's use per episode (episodes grow), at most to the double;
- on preemptions, or where the cache is nearly full, it is cut to three quarters of the episodes that do not wait in
  the engine: of what fits. Episodes are never cut off, so a cut shows only as they end; until then looking again
  gives the same limit, not a smaller one.

Pure: reports in, the next state out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quintain.rollout.engines.base import EngineStats

ROOM = 0.80
"""Share of the KV cache below which the engine could do with more episodes."""
FULL = 0.95
"""Share from which the next token may make it preempt."""
CUT = 0.75
"""A cut's share of the episodes that fit."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The limit on episodes, and the engine's count of preemptions when it was last seen (None: not yet)."""

    least: int
    most: int
    limit: int
    preemptions: int | None = None

    @classmethod
    def begin(cls, most: int, *, least: int, engine: EngineStats) -> Concurrency:
        """Where to begin: with few where the engine will say how many more it takes, else with all."""
        least = min(least, most)
        return cls(least, most, most if engine.kv_usage is None else least)

    def observe(self, engine: EngineStats, active: int) -> Concurrency:
        """After a look at the engine while `active` episodes hold a place."""
        usage = engine.kv_usage
        if usage is None:
            return self
        before = engine.preemptions if self.preemptions is None else self.preemptions
        seen = replace(self, preemptions=engine.preemptions)
        if engine.preemptions > before or usage >= FULL:
            fits = max(0, active - engine.waiting)
            return replace(seen, limit=max(self.least, min(self.limit, int(fits * CUT))))
        if usage < ROOM and engine.waiting == 0 and active >= self.limit:
            share = 1.0 if usage <= 0 else min(1.0, (ROOM / usage - 1) / 2)
            return replace(seen, limit=min(self.most, self.limit + max(1, int(self.limit * share))))
        return seen
