"""What a server says when it does not do as asked, and which status each failure has.

Every answer that is no success holds a `FailureBody`; one that may be met later says when to ask again. Requests refuse
fields they do not know; answers may gain fields, and clients ignore those they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import cache
from http import HTTPStatus
from typing import Any, Final, TypeVar

from quintain.codec import from_builtins
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.nearest import did_you_mean

T = TypeVar("T")

RETRY_AFTER_S: Final = 1.0
"""How long a client is asked to wait where nothing says how long it will take."""

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


@dataclass(frozen=True, slots=True)
class FailureBody:
    """What every answer that is no success holds."""

    failure: Failure


class Refused(FailureError):
    """A failure that asks for a status of its own, or for the client to wait `retry_after_s` seconds."""

    def __init__(self, failure: Failure, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(failure)
        self.status, self.retry_after_s = status, retry_after_s


def refused(
    message: str,
    stage: Stage,
    kind: FailureKind = FailureKind.REJECTED,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    retryable: bool | None = None,
) -> Refused:
    """The error of a request that is not met."""
    return Refused(Failure.of(kind, stage, message, retryable=retryable), status, retry_after_s)


def status_of(error: FailureError) -> int:
    """The HTTP status of `error`."""
    asked = error.status if isinstance(error, Refused) else None
    no_such_task = error.failure.kind is FailureKind.REJECTED and error.failure.stage is Stage.TASKS
    return int(asked or (HTTPStatus.NOT_FOUND if no_such_task else _STATUS[error.failure.kind]))


def retry_after_of(error: FailureError) -> float | None:
    """How many seconds a client is asked to wait, None where coming back does not help."""
    if status_of(error) not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return None
    asked = error.retry_after_s if isinstance(error, Refused) else None
    return (asked or RETRY_AFTER_S) if error.failure.retryable else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


@cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


def read(body: bytes, kind: type[T], stage: Stage, *, lenient: bool = False) -> T:
    """The request of `kind` that `body` is, or Refused (400) with the field's path.

    Top-level fields are all known; those that are not are left out where `lenient`, for wires that are not ours.
    """
    try:
        data = _DECODER.decode(body.decode())
        if rb"\u" in body:  # half of a surrogate pair is no text, and could not be passed on
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refused(f"the request must be JSON: {error}", stage, status=400) from None
    if not isinstance(data, dict):
        raise refused(f"the request must be a JSON object, not {type(data).__name__}", stage, status=400)
    of: Any = kind  # which mypy does not know to be hashable
    known = _field_names(of)
    if lenient:
        data = {name: data[name] for name in known if name in data}
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
