"""What was found about a program, and the verdict that it amounts to. Pure.

What always holds: exactly one status is success; every status but `bad_reference` gives a score; what broke on our
side is no finding at all, but a `FailureError`, which becomes a verdict with a failure and without a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.sandbox.interface import Execution, Status
from quintain.verifiers.text import shown

MESSAGE_CHARS: Final = 500
MAX_CASES_SHOWN: Final = 100


class CaseStatus(StrEnum):
    """How a program did, on one case or on all: `detail["status"]` of a verdict."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    COMPILE_ERROR = "compile_error"
    RUNTIME_ERROR = "runtime_error"  # it raised, crashed, or ended before its tests did
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    TAMPERING = "tampering"  # it sent or changed what no honest program does
    NO_CODE = "no_code"
    BAD_REFERENCE = "bad_reference"


OUTCOMES: Final[Mapping[CaseStatus, Outcome]] = {
    CaseStatus.PASSED: Outcome.CORRECT,
    CaseStatus.WRONG_ANSWER: Outcome.WRONG,
    CaseStatus.COMPILE_ERROR: Outcome.WRONG,
    CaseStatus.TAMPERING: Outcome.WRONG,
    CaseStatus.RUNTIME_ERROR: Outcome.CRASHED,
    CaseStatus.MEMORY_LIMIT: Outcome.CRASHED,
    CaseStatus.OUTPUT_LIMIT: Outcome.CRASHED,
    CaseStatus.TIMEOUT: Outcome.TIMEOUT,
    CaseStatus.NO_CODE: Outcome.UNPARSABLE,
    CaseStatus.BAD_REFERENCE: Outcome.BAD_REFERENCE,
}
"""The outcome of a verdict whose score is 0 or 1."""

OF_EXECUTION: Final[Mapping[Status, CaseStatus]] = {
    Status.OK: CaseStatus.PASSED,
    Status.RUNTIME_ERROR: CaseStatus.RUNTIME_ERROR,
    Status.TIMEOUT: CaseStatus.TIMEOUT,
    Status.MEMORY_LIMIT: CaseStatus.MEMORY_LIMIT,
    Status.OUTPUT_LIMIT: CaseStatus.OUTPUT_LIMIT,
}
"""INFRA_ERROR is not among them: it says nothing about the program."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How a program did on all its cases: `passed` of `total`; `cases` tells of each what there is to tell."""

    status: CaseStatus
    message: str = ""
    passed: int = 0
    total: int = 0
    cases: Sequence[Mapping[str, Any]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def verdict_of(finding: Finding, kind: str, *, partial_credit: bool) -> Verdict:
    """The verdict. With `partial_credit` the score is the share of cases passed, and below 1 unless all of them were;
    tampering and a program that cannot be run are worth nothing all the same."""
    status = finding.status
    detail: dict[str, Any] = {"kind": kind, "status": str(status)}
    if finding.message:
        detail["reason"] = shown(finding.message, MESSAGE_CHARS)
    if finding.total:
        detail |= {"passed": finding.passed, "total": finding.total}
    if finding.cases:
        detail["cases"] = [dict(case) for case in finding.cases[:MAX_CASES_SHOWN]]
    detail |= finding.more
    if status is CaseStatus.BAD_REFERENCE:
        return Verdict.failed(Outcome.BAD_REFERENCE, finding.message or "the reference cannot be used", **detail)
    if status is CaseStatus.PASSED:
        return Verdict(1.0, Outcome.CORRECT, None, 0.0, detail)
    worthless = status in (CaseStatus.TAMPERING, CaseStatus.COMPILE_ERROR, CaseStatus.NO_CODE)
    if partial_credit and not worthless and finding.passed > 0:
        return Verdict(finding.passed / max(finding.total, finding.passed + 1), Outcome.PARTIAL, None, 0.0, detail)
    return Verdict(0.0, OUTCOMES[status], None, 0.0, detail)


def excerpt(text: bytes, limit: int = 300) -> str:
    """The end of what a program wrote, for people."""
    said = text[-4 * limit :].decode("utf-8", "replace").strip()
    return shown(said if len(said) <= limit else "…" + said[-limit:], limit + 1)


def why(execution: Execution) -> str:
    """Why a program ended as it did: the reason, and its last words."""
    words = execution.stderr.rstrip().rpartition(b"\n")[2]
    return f"{execution.reason}: {excerpt(words)}" if words and execution.reason else execution.reason
