"""What the trainer and the rollout server say to each other: one frozen type per request and answer."""

from __future__ import annotations

from dataclasses import dataclass

from quintain.codec import Floats, Ints
from quintain.failure import Failure

MSGPACK = "application/msgpack"


@dataclass(frozen=True, slots=True, eq=False)
class PublishRequest:
    """New weights at `path` on this machine, and the canary that proves they arrived."""

    path: str
    version: int
    rows: tuple[Ints, ...]
    logprobs: tuple[Floats, ...]
    tolerance: float
    admit: bool = True  # false: load now, start training episodes at the next `admit`


@dataclass(frozen=True, slots=True)
class PublishAnswer:
    """How far the engine was from the trainer (nats), and how long sampling stood still."""

    mismatch_mean: float
    mismatch_max: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """Start what the staleness rule allows at `version`."""

    version: int


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Run tasks outside the journal: `samples` episodes of each index. Temperature 0 is greedy."""

    split: str
    indices: tuple[int, ...]
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Not ready yet: `done` of `total` trajectories."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Health:
    """`boot` changes when the server starts again; `version` is -1 before the first publish."""

    boot: str
    version: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the server's start."""

    version: int
    running: int
    prompt_tokens: int
    output_tokens: int
    engine_busy_s: float
    failures: dict[str, int]
    forks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The body of every answer that is not 2xx."""

    failure: Failure
