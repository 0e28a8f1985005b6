"""Verifiers that judge in this process: for checks that are pure, and whose time is bounded by their input's length.

What always holds, beyond what holds for every verifier: the event loop gets its turn between items; whatever a
judgement raises is `crashed` for its item alone. `deadline_s` is not needed: no input can make these slow.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from quintain.failure import one_line
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item
from quintain.verifiers.options import AnyOptions, OptionsVerifier, TextOptions
from quintain.verifiers.text import MAX_ANSWER_CHARS, shown, texts_of

YIELD_AFTER_S: Final = 0.005
"""The event loop gets its turn after so much time on a batch."""


AnyTextOptions = TypeVar("AnyTextOptions", bound=TextOptions)


class PureVerifier(OptionsVerifier[AnyOptions]):
    """Judges with `judge`, a pure function of the answer and the reference."""

    cost: Cost = Cost.PURE

    @abstractmethod
    def judge(self, answer: str, reference: Any) -> Verdict:
        """The verdict on `answer`."""

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order."""
        verdicts, turn = [], time.perf_counter()
        for item in items:
            started = time.perf_counter()
            if started - turn > YIELD_AFTER_S:
                await asyncio.sleep(0)
                turn = started = time.perf_counter()
            verdict = self._judged(item)
            verdicts.append(replace(verdict, elapsed_s=time.perf_counter() - started))
        return verdicts

    def _judged(self, item: Item) -> Verdict:
        refused = unreadable(item.answer)
        if refused is not None:
            return refused
        try:
            return self.judge(item.answer, item.reference)
        except Exception as error:  # the boundary: a flaw in judging one item costs that item
            return crashed(error)


class AcceptedTexts(PureVerifier[AnyTextOptions]):
    """Scores an answer by `score_of` its text and the accepted ones: a text, or a list of which any will do."""

    @abstractmethod
    def score_of(self, given: str, accepted: Sequence[str]) -> float:
        """The score of the text `given`."""

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The score; an empty reference is a `bad_reference`, since silence would satisfy it."""
        accepted = texts_of(reference)
        if accepted is None:
            return bad_reference("a text that is not empty, or a list of such texts", reference)
        given = self.options.answer_in(answer)
        if not given:
            return unparsable("there is no answer in the text")
        return Verdict.scored(self.score_of(given, accepted), answer=shown(given))


def unreadable(answer: object) -> Verdict | None:
    """The verdict on an answer that no verifier reads: it is no text, or too long."""
    if not isinstance(answer, str):
        return unparsable(f"an answer is a text, not a {type(answer).__name__}")
    if len(answer) > MAX_ANSWER_CHARS:
        return unparsable(f"an answer has at most {MAX_ANSWER_CHARS:,} characters, this has {len(answer):,}")
    return None


def unparsable(reason: str, **detail: Any) -> Verdict:
    """Score 0: there is nothing in the answer that could be checked."""
    return Verdict(0.0, Outcome.UNPARSABLE, None, 0.0, {**detail, "reason": reason})


def bad_reference(expected: str, reference: object) -> Verdict:
    """No score: `reference` is not what was `expected`."""
    what = type(reference).__name__ if isinstance(reference, (dict, list)) else shown(repr(reference), 100)
    return Verdict.failed(Outcome.BAD_REFERENCE, f"a reference is {expected}, not {what}")


def crashed(error: Exception) -> Verdict:
    """No score: the verifier itself broke on the item."""
    return Verdict.failed(Outcome.CRASHED, one_line(shown(f"{type(error).__name__}: {error}", 400)))
