"""Judges single pairs in the test's own process: the fast path, and the full check where that leaves a question."""

from __future__ import annotations

from typing import Any

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.math import MathOptions
from quintain.verifiers.math.compare import full
from quintain.verifiers.math.compare.fast import decide


def outcome(answer: str, reference: Any, /, **options: Any) -> Outcome:
    """The judgement, by whichever path it takes."""
    found = decide(answer, reference, MathOptions(**options))
    if isinstance(found, Verdict):
        return found.outcome
    return Outcome(full.check(found)["outcome"])


def checked(answer: str, reference: str) -> Outcome:
    """The judgement of the full check alone, on what an answer and a reference are after extraction."""
    asked = {"answer": answer, "answer_groups": False, "reference": reference, "reference_groups": False}
    return Outcome(full.check({**asked, "close": {}, "judge": {}})["outcome"])
