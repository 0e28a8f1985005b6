"""Verdicts: what a verifier says about one item.

A verdict is a finite score in [0, 1] or a failure, never both and never neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from quintain.failure import Failure, FailureKind, Stage


class Outcome(StrEnum):
    """Why a verdict has its score. The last three come with a failure where the verifier itself gave up."""

    CORRECT = "correct"
    PARTIAL = "partial"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # the answer says nothing that could be checked
    BAD_REFERENCE = "bad_reference"  # the reference cannot be used: nobody's answer is wrong
    TIMEOUT = "timeout"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says: `score` in [0, 1] with its `outcome`, or a `failure` and no score.

    `elapsed_s` is the verifier's own wall time on the item; `detail` is for people and reports.
    """

    score: float | None
    outcome: Outcome
    failure: Failure | None = None
    elapsed_s: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.score is None) == (self.failure is None):
            raise ValueError("a verdict has a score or a failure: give exactly one of them")
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"a verdict's score is a finite number in [0, 1], not {self.score!r}")

    @classmethod
    def scored(cls, score: float, *, elapsed_s: float = 0.0, **detail: Any) -> Verdict:
        """A verdict whose outcome follows from its score: 1 correct, 0 wrong, else partial."""
        outcome = Outcome.CORRECT if score == 1.0 else Outcome.WRONG if score == 0.0 else Outcome.PARTIAL
        return cls(score, outcome, None, elapsed_s, detail)

    @classmethod
    def unfinished(cls, failure: Failure) -> Verdict:
        """A verdict that is no score, because of `failure`: what asked for it, or was asked, broke."""
        return cls(None, Outcome.TIMEOUT if failure.kind is FailureKind.TIMEOUT else Outcome.CRASHED, failure)

    @classmethod
    def failed(cls, outcome: Outcome, message: str, *, elapsed_s: float = 0.0, **detail: Any) -> Verdict:
        """A verdict that is no score: the verifier timed out, crashed, or was given a bad reference.

        None is retryable here: the pool has already retried what another worker could do.
        """
        kind = {
            Outcome.TIMEOUT: FailureKind.TIMEOUT,
            Outcome.CRASHED: FailureKind.CRASHED,
            Outcome.BAD_REFERENCE: FailureKind.REJECTED,
        }[outcome]
        failure = Failure.of(kind, Stage.VERIFY, message, retryable=False)
        return cls(None, outcome, failure, elapsed_s, detail)
