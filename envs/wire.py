"""What travels over HTTP under `/v1`, and which status each failure has.

Requests refuse fields they do not know; answers may gain fields, and clients ignore those they do not know.
No answer has a place for a task's reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from typing import Any, TypeVar

from quintain.codec import from_builtins
from quintain.envs.base import Action, Observation
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import Message
from quintain.nearest import did_you_mean
from quintain.task import Task, TaskOrigin
from quintain.verdict import Verdict

T = TypeVar("T")

MAX_TASKS = 1000
"""Tasks in one page at most."""
MAX_ITEMS = 4096
"""Items in one verify request at most."""


@dataclass(frozen=True, slots=True)
class CreateEpisode:
    """`POST /v1/episodes`: an episode on task `index` of `split`, or on a `task` of the client's own.

    A client that chooses `episode_id` may repeat the request: the same id and request give the same episode.
    """

    split: str | None = None
    index: int | None = None
    task: Task | None = None
    seed: int | None = None
    episode_id: str | None = None


@dataclass(frozen=True, slots=True)
class EpisodeCreated:
    """The answer to it. `turn` is the number the first step must carry."""

    episode_id: str
    turn: int
    state: str
    lease_s: float
    observation: Observation


@dataclass(frozen=True, slots=True)
class StepRequest:
    """`POST /v1/episodes/{id}/step`: `turn` makes it safe to repeat."""

    turn: int
    action: Action


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """The answer to it. `turn` is the number the next step must carry."""

    episode_id: str
    turn: int
    state: str
    lease_s: float
    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EpisodeStatus:
    """`GET` and `DELETE /v1/episodes/{id}`."""

    episode_id: str
    turn: int
    state: str
    lease_s: float
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
class VerifyItem:
    """One finished answer and the reference to hold it against."""

    answer: str
    reference: Any = None


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """`POST /v1/verify`: score finished answers; `deadline_s` is for each item."""

    verifier: str
    items: tuple[VerifyItem, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class VerifyAnswer:
    """The verdicts, in the order of the items."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """`GET /metadata`: which environment this is; `splits` has the number of tasks, None where endless."""

    name: str
    description: str
    version: str
    splits: Mapping[str, int | None]
    server: str = "quintain"


@dataclass(frozen=True, slots=True)
class FailureBody:
    """What every answer that is no success holds."""

    failure: Failure


WIRE: tuple[type, ...] = (
    CreateEpisode,
    EpisodeCreated,
    StepRequest,
    StepAnswer,
    EpisodeStatus,
    TaskPage,
    VerifyRequest,
    VerifyAnswer,
    Metadata,
    FailureBody,
)

_STATUS = {
    FailureKind.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    FailureKind.CRASHED: HTTPStatus.INTERNAL_SERVER_ERROR,
    FailureKind.UNREACHABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureKind.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    FailureKind.INVALID: HTTPStatus.INTERNAL_SERVER_ERROR,
    FailureKind.REJECTED: HTTPStatus.BAD_REQUEST,
    FailureKind.TOO_LONG: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    FailureKind.RESOURCE: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureKind.CANCELLED: HTTPStatus.CONFLICT,
    FailureKind.LOST: HTTPStatus.NOT_FOUND,
}


class Refused(FailureError):
    """A failure that asks for a status of its own, or for the client to wait `retry_after_s` seconds."""

    def __init__(self, failure: Failure, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(failure)
        self.status = status
        self.retry_after_s = retry_after_s


def refused(
    message: str,
    stage: Stage,
    kind: FailureKind = FailureKind.REJECTED,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
) -> Refused:
    """The error of a request that is not met."""
    return Refused(Failure.of(kind, stage, message), status, retry_after_s)


def status_of(error: FailureError) -> int:
    """The HTTP status of `error`."""
    asked = error.status if isinstance(error, Refused) else None
    no_such_task = error.failure.kind is FailureKind.REJECTED and error.failure.stage is Stage.TASKS
    return int(asked or (HTTPStatus.NOT_FOUND if no_such_task else _STATUS[error.failure.kind]))


def read(body: bytes, kind: type[T], stage: Stage) -> T:
    """The request of `kind` that `body` is, or Refused (400) with the field's path.

    Top-level fields are all known.
    """
    try:
        data = json.loads(body, parse_constant=_no_constant)
        if rb"\u" in body:  # half of a surrogate pair is no text, and could not be passed on
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refused(f"the request must be JSON: {error}", stage, status=400) from None
    if not isinstance(data, dict):
        raise refused(f"the request must be a JSON object, not {type(data).__name__}", stage, status=400)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            message = (
                f"a {kind.__name__} has no field {name!r}{did_you_mean(name, known)} (its fields: {', '.join(known)})"
            )
            raise refused(message, stage, status=400)
    try:
        return from_builtins(data, kind)
    except (QuintainError, FailureError) as error:
        raise refused(str(error), stage, status=400) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def schema() -> dict[str, Any]:
    """The JSON schema of everything on the wire, by name."""
    from pydantic import TypeAdapter

    _, definitions = TypeAdapter.json_schemas([(kind.__name__, "validation", TypeAdapter(kind)) for kind in WIRE])
    return definitions
