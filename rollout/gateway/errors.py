"""Refusals in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with our `failure` beside it.

What always holds: every answer of the gateway that is no success has this body, so an OpenAI client and a client of
ours can both read it; what may help to ask again for is 429 or 503, what may not says so to the client's retries.
"""

from __future__ import annotations

from typing import Any

from quintain.codec import to_builtins
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.serving.refusals import Refused, retry_after_of


class ApiError(Refused):
    """A refusal with the fields that OpenAI's errors have."""

    def __init__(
        self,
        failure: Failure,
        status: int,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(failure, status, retry_after_s)
        self.code, self.param = code, param


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request makes no sense here; `param` is the field to mend."""
    return ApiError(Failure.of(FailureKind.REJECTED, Stage.REQUEST, message), 400, code=code, param=param)


def unsupported(param: str, message: str) -> ApiError:
    """400: the request asks for something that the gateway does not do."""
    return bad_request(message, param=param, code="unsupported_value")


def full(message: str) -> ApiError:
    """429: ask again later."""
    failure = Failure.of(FailureKind.OVERLOADED, Stage.REQUEST, message)
    return ApiError(failure, 429, code="rate_limit_exceeded")


def as_api_error(error: FailureError) -> ApiError:
    """Any failure as the gateway answers it. The engine's are 503 where asking again may help, else 500."""
    failure = error.failure
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused) and error.status is not None:
        return ApiError(failure, error.status, retry_after_s=error.retry_after_s)
    if failure.kind is FailureKind.TOO_LONG:
        if failure.stage is Stage.REQUEST:
            return ApiError(failure, 413, code="request_too_large")
        return ApiError(failure, 400, code="context_length_exceeded", param="messages")
    if failure.stage is Stage.RENDER and failure.kind is FailureKind.REJECTED:
        return ApiError(failure, 400, code="template_refused", param="messages")
    return ApiError(failure, 503 if failure.retryable else 500, code=failure.kind)


def error_of(error: ApiError) -> dict[str, Any]:
    """The body of an answer, or an event in a stream that has begun."""
    failure, status = error.failure, error.status or 500
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    shown = {"message": failure.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": shown, "failure": to_builtins(failure)}


def error_headers(error: ApiError) -> dict[str, str]:
    """`x-should-retry` is what OpenAI's own clients obey."""
    wait_s = retry_after_of(error)
    headers = {"x-should-retry": "false" if wait_s is None else "true"}
    if wait_s is not None:
        headers["retry-after"] = f"{wait_s:g}"
    if error.status in (408, 413):
        headers["connection"] = "close"  # or the rest of the request would be read after all
    return headers
