"""How the rollout server reads a request: a JSON or msgpack body, whole numbers and waiting times in the query."""

from __future__ import annotations

from typing import Final, TypeVar

from starlette.requests import Request

from quintain.codec import unpack
from quintain.failure import QuintainError, Stage
from quintain.rollout.wire import MSGPACK
from quintain.serving.app import read_body
from quintain.serving.refusals import read, refused

T = TypeVar("T")

BODY_BYTES: Final = 32 << 20
BODY_WITHIN_S: Final = 60.0
MAX_WAIT_S: Final = 30.0
"""A request waits no longer: its client asks again, and can be interrupted between."""


async def read_request(request: Request, kind: type[T]) -> T:
    """The body as a `kind`. Raises Refused (400, or 413 where it is too large)."""
    body = await read_body(request, BODY_BYTES, within_s=BODY_WITHIN_S)
    if request.headers.get("content-type", "").startswith(MSGPACK):
        try:
            return unpack(body, kind)
        except QuintainError as error:
            raise refused(str(error), Stage.REQUEST, status=400) from None
    return read(body, kind, Stage.REQUEST)


def wait_of(request: Request) -> float:
    """How long the client is ready to wait, in seconds. Raises Refused (400)."""
    text = request.query_params.get("wait_s", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s < float("inf"):
        raise refused(f"wait_s: expected seconds, at least 0, not {text[:40]!r}", Stage.REQUEST, status=400)
    return min(MAX_WAIT_S, wait_s)


def cursor_of(request: Request) -> int:
    """The place that the client reads on from, at least 0. Raises Refused (400)."""
    text = request.query_params.get("cursor", "0")
    if not text.isdecimal() or len(text) > 18:
        raise refused(f"cursor: expected a whole number, at least 0, not {text[:40]!r}", Stage.REQUEST, status=400)
    return int(text)
