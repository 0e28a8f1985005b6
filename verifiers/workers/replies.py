"""What a worker's reply, or its death, says about the item it was working on. Pure.

A check function gives `{"outcome": Outcome, "score": float, "message": str, "detail": dict}`, of which only the outcome
is always needed: the score follows from `correct`, `wrong` and `unparsable`, the message is for failures.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Final

from quintain.verdict import Outcome, Verdict

OWN_FAULT: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS}
)
"""Signals that a process brings upon itself. Others, SIGKILL above all, may come from somebody else."""


def verdict_of_reply(reply: Mapping[str, Any]) -> Verdict:
    """The verdict that a worker's reply holds; a check that breaks its contract has crashed."""
    elapsed_s = reply["elapsed_s"]
    if "crash" in reply:
        return Verdict.failed(Outcome.CRASHED, reply["crash"], elapsed_s=elapsed_s)
    try:
        return _verdict(reply["verdict"], elapsed_s)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        broken = f"the check gave no verdict: {type(error).__name__}: {error}"
        return Verdict.failed(Outcome.CRASHED, broken, elapsed_s=elapsed_s)


def verdict_of_death(status: int | None, deadline_s: float) -> Verdict | None:
    """The verdict on an item whose worker ended with exit code `status` (negative: by that signal).

    None where the item may be innocent: the signal may have come from outside, or nobody knows what happened.
    """
    if status == -signal.SIGXCPU:
        return Verdict.failed(Outcome.TIMEOUT, "the item used up its processor time", elapsed_s=deadline_s)
    if status is not None and (status >= 0 or -status in OWN_FAULT):
        return Verdict.failed(Outcome.CRASHED, how_it_died(status))
    return None


def how_it_died(status: int | None) -> str:
    """How a worker ended, in words."""
    if status is None:
        return "its worker process died"
    if status >= 0:
        return f"the check ended its worker process with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its worker process died of {name}"


def _verdict(data: Mapping[str, Any], elapsed_s: float) -> Verdict:
    outcome = Outcome(data["outcome"])
    detail = dict(data.get("detail") or {})
    if outcome in (Outcome.BAD_REFERENCE, Outcome.TIMEOUT, Outcome.CRASHED):
        return Verdict.failed(outcome, str(data.get("message", outcome)), elapsed_s=elapsed_s, **detail)
    score = float(data.get("score", 1.0 if outcome is Outcome.CORRECT else 0.0))
    return Verdict(score, outcome, None, elapsed_s, detail)
