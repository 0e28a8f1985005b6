"""What travels to and from a verifier service.

Requests refuse fields they do not know; answers may gain fields, and clients ignore those they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quintain.verdict import Verdict
from quintain.verifiers.base import Item

MAX_ITEMS: Final = 4096
"""Items in one verify request at most."""
NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """`POST /v1/verify`: score finished answers.

    `deadline_s` is for each item once it is begun, `timeout_s` for the whole request: when it has passed, what is
    not finished is a failure (`timeout`, retryable), and what is finished keeps its verdict. With `stream`, or
    `Accept: application/x-ndjson`, the answer is a `StreamedVerdict` a line, in the order in which they are ready,
    and a `StreamEnd` at the end.
    """

    verifier: str
    items: tuple[Item, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    timeout_s: float | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class VerifyAnswer:
    """The verdicts, in the order of the items."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class StreamedVerdict:
    """A line of a streamed answer: the verdict on item number `index`."""

    index: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last line of a streamed answer that is whole: `count` verdicts came before it."""

    count: int
    done: bool = True


@dataclass(frozen=True, slots=True)
class VerifierInfo:
    """A verifier on offer: `cost` is the name of a `Cost`, `options` the JSON schema of its options.

    `operator_options` are those that only the operator sets. Where it is not `available` here, `problem` says why,
    and there may be no `version`.
    """

    name: str
    description: str
    cost: str
    version: str | None
    available: bool
    problem: str | None
    options: Mapping[str, Any]
    operator_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifierList:
    """`GET /v1/verifiers`."""

    verifiers: tuple[VerifierInfo, ...]
