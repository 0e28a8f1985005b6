"""Judges single pairs in the test's own process: the fast path, and the full check where that leaves a question."""

from __future__ import annotations

from typing import Any

from quintain.verdict import Outcome
from quintain.verifiers.math import MathOptions
from quintain.verifiers.math.compare import full
from quintain.verifiers.math.compare.fast import EqualityQuestion, decide
from quintain.verifiers.math.verifier import question_item


def outcome(answer: str, reference: Any, /, **options: Any) -> Outcome:
    """The judgement, by whichever path it takes."""
    found = decide(answer, reference, MathOptions(**options))
    if not isinstance(found, EqualityQuestion):
        return found.outcome
    return Outcome(full.check(question_item(found))["outcome"])


def checked(answer: str, reference: str) -> Outcome:
    """The judgement of the full check alone, on what an answer and a reference are after extraction."""
    policy = {"places": 6, "units": "lenient", "percent": "strict", "relations_are_sets": True, "rename": False}
    question = EqualityQuestion(answer, reference, False, False, policy)
    return Outcome(full.check(question_item(question))["outcome"])
