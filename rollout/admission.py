"""Admission: how many trajectories may be started, so that none is too old when it is consumed.

Invariant: a trajectory is admitted only while accepted + running + 1 <= (max_staleness + version + 1) * batch. With
the trainer consuming in the order of issue, the trajectory in place p is consumed at version p // batch and was
admitted at version p // batch - max_staleness or later. So nothing is ever thrown away for its age.
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

    @property
    def room(self) -> int:
        """How many more trajectories may be started now."""
        if self.version < 0:
            return 0
        return max(0, (self.max_staleness + self.version + 1) * self.batch - self.issued)

    def issue(self, trajectories: int) -> Admission:
        """After `trajectories` more were started. Raises ValueError where that breaks the rule."""
        if trajectories > self.room:
            raise ValueError(f"cannot admit {trajectories} trajectories: there is room for {self.room}")
        return replace(self, issued=self.issued + trajectories)

    def advance(self, version: int) -> Admission:
        """After the weights of `version` were published. Versions never go back."""
        if version < self.version:
            raise ValueError(f"the version cannot go back from {self.version} to {version}")
        return replace(self, version=version)
