"""What clients and the rollout server say to each other: one frozen type per request and answer.

Requests refuse fields they do not know; answers may gain fields. Everything that is no success is a `FailureBody`
(`quintain.serving.refusals`). Bodies are JSON or, with arrays as raw bytes, msgpack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgpack

from quintain.arrays import Floats, Ints
from quintain.codec import Int64
from quintain.failure import Failure
from quintain.task import Task
from quintain.trajectory import Group

MSGPACK: Final = "application/msgpack"
NDJSON: Final = "application/x-ndjson"
ROLLOUT_TOKEN_ENV: Final = "QUINTAIN_ROLLOUT_TOKEN"
"""The variable with the tokens of a rollout server's clients."""
FRAMES: Final = "application/vnd.quintain.frames"
"""A stream of msgpack objects, each a frame (`quintain.frames`)."""


def packed_group(name: str, index: int, trajectories: Sequence[bytes]) -> bytes:
    """The packed `Group` of packed trajectories, none of which is unpacked."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(3)
    for value in ("id", name, "index", index, "trajectories"):
        packer.pack(value)
    packer.pack_array_header(len(trajectories))
    return b"".join([packer.bytes(), *trajectories])


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

    version: Int64


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Run tasks outside the journal: `samples` episodes of each, the tasks `indices` of `split` or `tasks` in full.

    Sampling is the experiment's but for what is given; temperature 0 is greedy. The same `seed` gives the same
    episodes the same seeds. A client that chooses the name `run` may repeat the request: the same name and request
    give the same run.
    """

    split: str | None = None
    indices: tuple[Int64, ...] = ()
    tasks: tuple[Task, ...] = ()
    samples: int = 1
    seed: Int64 = 0
    temperature: float | None = 0.0  # None: the experiment's, as for those below
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    run: str | None = None
    environment: str | None = None  # None: the run's only one, or its first


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"  # the server made a mistake: a failed episode is a trajectory like any other


@dataclass(frozen=True, slots=True)
class TaskRunStatus:
    """A run: `done` of `total` trajectories, `finished` of `groups` groups; those before `kept_from` are forgotten."""

    run: str
    state: RunState
    done: int
    total: int
    finished: int
    groups: int
    kept_from: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StreamItem:
    """One object of a stream: a group and the `cursor` after it, in the order in which groups finish.

    The last one has no group but `status` and `end`: whether there is nothing more. A stream without it is not whole.
    """

    cursor: int
    group: Group | None = None
    end: bool | None = None
    status: TaskRunStatus | None = None


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Not ready yet: `done` of `total` trajectories."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DrainReport:
    """`drained` when nothing is left of what was started: episodes that run and that wait for a place, those of runs
    that were not begun either, and agents' sessions that live. Then what the journal holds, in groups."""

    drained: bool
    running: int
    waiting: int
    runs_left: int
    sessions_live: int
    paused: bool
    issued: int
    completed: int
    consumed: int


@dataclass(frozen=True, slots=True)
class Health:
    """`boot` changes when the server starts again; `version` is -1 before the first publish."""

    boot: str
    version: int
    max_length: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the server's start, and what it is doing now."""

    version: int
    running: int
    prompt_tokens: int
    output_tokens: int
    engine_busy_s: float
    failures: dict[str, int]
    forks: dict[str, int]
    paused: bool = False
    draining: bool = False
    runs: int = 0
    result_bytes: int = 0
    staleness: dict[int, int] = field(default_factory=dict)
