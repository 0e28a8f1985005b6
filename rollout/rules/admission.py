"""Admission: how many trajectories may be started, so that none is too old when it is consumed.

Invariant: a trajectory is admitted only while accepted + running - dropped + 1 <= (max_staleness + version + 1) *
batch. The trainer consumes in the order of issue, and skips what was dropped: so the trajectory that is the n-th of
those not dropped when it is admitted at version v is consumed at step (n - 1) // batch or, if others before it are
dropped later, earlier: at most at v + max_staleness. So nothing is ever thrown away for its age.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule's state, in trajectories: `issued` is accepted + running; `version` -1 is 'no weights yet'."""

    batch: int
    max_staleness: int
    version: int = -1
    issued: int = 0
    dropped: int = 0

    @property
    def room(self) -> int:
        """How many more trajectories may be started now."""
        if self.version < 0:
            return 0
        return max(0, (self.max_staleness + self.version + 1) * self.batch - self.issued + self.dropped)

    def issue(self, trajectories: int) -> Admission:
        """After `trajectories` more were started. Raises ValueError where that breaks the rule."""
        if trajectories > self.room:
            raise ValueError(f"cannot admit {trajectories} trajectories: there is room for {self.room}")
        return replace(self, issued=self.issued + trajectories)

    def drop(self, trajectories: int) -> Admission:
        """After `trajectories` of those issued were dropped: no step will consume them, others may take their room."""
        if self.dropped + trajectories > self.issued:
            raise ValueError(f"cannot drop {trajectories} trajectories: {self.issued - self.dropped} are there")
        return replace(self, dropped=self.dropped + trajectories)

    def advance(self, version: int) -> Admission:
        """After the weights of `version` were published. Versions never go back."""
        if version < self.version:
            raise ValueError(f"the version cannot go back from {self.version} to {version}")
        return replace(self, version=version)
