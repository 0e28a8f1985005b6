"""What a run samples, as data: the scheduler's orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quintain.rollout.engines.base import Sampling
from quintain.rollout.rules.groups import Patience, Rewards, Rules
from quintain.rollout.rules.order import TaskSplit


@dataclass(frozen=True, slots=True)
class Played:
    """One environment of a run: the split that training draws from, and how its episodes are sampled.

    `reward_weights` make an episode's reward of its named ones; None takes it as it is. `places` is how many episodes
    it plays at a time; None is any number.
    """

    split: TaskSplit
    sampling: Sampling
    max_turns: int
    reward_weights: Mapping[str, float] | None = None
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run samples: groups of `members` trajectories, `groups` of them a step, of the environments `plays`.

    `refills` bounds the groups that dynamic sampling drops a step, None turns it off; `patience` says when an
    episode is a straggler, None waits; `follow_engine` lets the limit on episodes follow the engine's load.
    """

    plays: tuple[Played, ...]
    seed: int
    groups: int
    members: int
    max_staleness: int
    max_length: int
    attempts: int
    max_concurrency: int
    oversample: int = 0
    refills: int | None = None
    rewards: Rewards = field(default_factory=Rewards)
    patience: Patience | None = None
    follow_engine: bool = False
    sample_timeout_s: float | None = None

    @property
    def rules(self) -> Rules:
        """How groups are made up."""
        return Rules(self.groups, self.members, self.oversample, self.refills)

    @property
    def splits(self) -> tuple[TaskSplit, ...]:
        """What training draws from."""
        return tuple(played.split for played in self.plays)

    def played(self, environment: str | None) -> Played | None:
        """What is called `environment`, the first where nothing is named; None where there is no such."""
        return next((one for one in self.plays if environment in (None, one.split.environment)), None)

    def audited(self) -> dict[str, Any]:
        """What an audit of the journal has to know."""
        names = ("seed", "groups", "members", "max_staleness", "oversample", "refills")
        return {"splits": [asdict(split) for split in self.splits], **{name: getattr(self, name) for name in names}}
