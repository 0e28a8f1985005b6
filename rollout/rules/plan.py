"""What a run samples, as data: the scheduler's orders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from quintain.rollout.engines.base import Sampling
from quintain.rollout.rules.groups import Patience, Rewards, Rules
from quintain.rollout.rules.order import task_index


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run samples: groups of `members` trajectories, `groups` of them a step.

    `refills` bounds the groups that dynamic sampling drops a step, None turns it off; `patience` says when an
    episode is a straggler, None waits; `follow_engine` lets the limit on episodes follow the engine's load.
    """

    split: str
    size: int | None
    shuffle: bool
    seed: int
    groups: int
    members: int
    max_staleness: int
    max_turns: int
    max_length: int
    attempts: int
    max_concurrency: int
    sampling: Sampling
    oversample: int = 0
    refills: int | None = None
    rewards: Rewards = field(default_factory=Rewards)
    patience: Patience | None = None
    follow_engine: bool = False
    sample_timeout_s: float | None = None
    environment: str = ""

    @property
    def rules(self) -> Rules:
        """How groups are made up."""
        return Rules(self.groups, self.members, self.oversample, self.refills)

    def task_at(self, place: int) -> int:
        """The index of the task that belongs to `place`."""
        return task_index(place, self.size, seed=self.seed, shuffle=self.shuffle)

    def audited(self) -> dict[str, Any]:
        """What an audit of the journal has to know."""
        names = ("split", "size", "shuffle", "seed", "groups", "members", "max_staleness", "oversample", "refills")
        return {name: getattr(self, name) for name in names}
