"""What a harness says to the gateway about sessions: one frozen type per request and answer.

The pages under `/sessions/{id}/v1` speak OpenAI's format instead (`chat`, `answers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from quintain.codec import Int64
from quintain.failure import Failure, FailureKind


class Overrides(StrEnum):
    """What becomes of sampling parameters of an agent's that are not the run's (see `chat`)."""

    REFUSE = "refuse"  # the call is refused, and the error says why
    IGNORE = "ignore"  # the run's sampling holds; the answer and the session's status name what was ignored
    ALLOW = "allow"  # temperature, top_p, top_k and seed are the agent's


@dataclass(frozen=True, slots=True)
class OpenSession:
    """One episode driven by an agent program.

    `task`, `group`, `index`, `member` and `environment` become the trajectory's; by default a session is a group of its
    own. A client that chooses the `id` may repeat the request. Limits are in tokens and turns and can only be smaller
    than the gateway's. `models` are further names that the agent may call the policy by.
    """

    id: str | None = None
    task: str | None = None
    group: str | None = None
    index: Int64 = 0
    member: Int64 = 0
    seed: Int64 | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    overrides: Overrides = Overrides.REFUSE
    max_turns: int | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    environment: str = ""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A session: `base_url`, `api_key` and `model` are what its agent's OpenAI client is given."""

    id: str
    base_url: str
    api_key: str
    model: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """The end of a session. `rewards` names parts of the reward, `info` is kept with the trajectory.

    A session in which a call failed and was never answered ends as that failure, whatever the reward, because a
    failure is no reward; `despite_failures` says that the agent coped with it.
    """

    reward: float
    rewards: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False
    despite_failures: bool = False


@dataclass(frozen=True, slots=True)
class FailRequest:
    """The end of a session in which something broke on the agent's side."""

    message: str
    kind: FailureKind = FailureKind.CRASHED
    info: Mapping[str, Any] = field(default_factory=dict)


class SessionState(StrEnum):
    """Where a session stands."""

    LIVE = "live"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A session as it is now. Tokens are those that were sampled."""

    id: str
    state: SessionState
    task: str
    group: str
    turns: int
    calls: int  # under way
    output_tokens: int
    forks: dict[str, int]
    ignored: dict[str, int]
    truncated: bool
    failed_calls: int
    unanswered: Failure | None  # the newest call that failed and was not answered later
    reward: float | None
    failure: Failure | None
    lease_s: float
