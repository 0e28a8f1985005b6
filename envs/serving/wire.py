"""What travels over an environment's HTTP under `/v1`.

Requests refuse fields they do not know; answers may gain fields, and clients ignore those they do not know.
No answer has a place for a task's reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quintain.codec import Int64
from quintain.envs.base import Action, Observation
from quintain.failure import Failure
from quintain.messages import Message
from quintain.serving.refusals import FailureBody
from quintain.task import Task, TaskOrigin
from quintain.verifiers.service.wire import VerifyAnswer, VerifyRequest

MAX_TASKS = 1000
"""Tasks in one page at most."""


@dataclass(frozen=True, slots=True)
class CreateEpisode:
    """`POST /v1/episodes`: an episode on task `index` of `split`, or on a `task` of the client's own.

    A client that chooses `episode_id` may repeat the request: the same id and request give the same episode.
    """

    split: str | None = None
    index: Int64 | None = None
    task: Task | None = None
    seed: Int64 | None = None
    episode_id: str | None = None


@dataclass(frozen=True, slots=True)
class EpisodeStanding:
    """Where an episode stands: `turn` is the number that the next step must carry."""

    episode_id: str
    turn: int
    state: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class EpisodeCreated(EpisodeStanding):
    """The answer to it. `task_id` is the task's id in its source."""

    observation: Observation
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class StepRequest:
    """`POST /v1/episodes/{id}/step`: `turn` makes it safe to repeat."""

    turn: int
    action: Action


@dataclass(frozen=True, slots=True)
class StepAnswer(EpisodeStanding):
    """The answer to it."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """`POST /v1/episodes/{id}/fork`: an episode with the first `turn` turns of another; the answer is its standing.

    A client that chooses `episode_id` may repeat the request.
    """

    turn: int
    episode_id: str | None = None


@dataclass(frozen=True, slots=True)
class EpisodeStatus(EpisodeStanding):
    """`GET` and `DELETE /v1/episodes/{id}`."""

    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class PublicTask:
    """A task as clients see it: it has no reference, and `origin` says where the server finds it."""

    id: str
    prompt: tuple[Message, ...]
    seed: int | None
    info: Mapping[str, Any]
    origin: TaskOrigin

    @classmethod
    def of(cls, task: Task, origin: TaskOrigin) -> PublicTask:
        """What of `task` may be seen."""
        return cls(task.id, task.prompt, task.seed, task.info, origin)

    def task(self) -> Task:
        """This as a `Task` without a reference."""
        return Task(self.id, self.prompt, None, self.seed, self.info, self.origin)


@dataclass(frozen=True, slots=True)
class TaskPage:
    """`GET /v1/tasks?split=&start=&count=`: `size` is None where the split is endless."""

    split: str
    start: int
    size: int | None
    tasks: tuple[PublicTask, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """`GET /metadata`: which environment this is; `splits` has the number of tasks, None where endless.

    `places` is how many episodes the server plays at a time: more wait.
    """

    name: str
    description: str
    version: str
    splits: Mapping[str, int | None]
    server: str = "quintain"
    places: int | None = None


WIRE: tuple[type, ...] = (
    CreateEpisode,
    EpisodeCreated,
    StepRequest,
    StepAnswer,
    ForkRequest,
    EpisodeStatus,
    TaskPage,
    VerifyRequest,
    VerifyAnswer,
    Metadata,
    FailureBody,
)


def schema() -> dict[str, Any]:
    """The JSON schema of everything on the wire, by name."""
    from pydantic import TypeAdapter

    _, definitions = TypeAdapter.json_schemas([(kind.__name__, "validation", TypeAdapter(kind)) for kind in WIRE])
    return definitions
