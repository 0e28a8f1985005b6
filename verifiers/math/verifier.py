"""The math verifier: plain numbers in this process, everything else in killable workers with math-verify.

What always holds, beyond what holds for every verifier: the fast path and the full check agree; the base
install judges plain numbers, and says which references need more; no worker starts before an item needs one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar, Final

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item, Verifier
from quintain.verifiers.math.compare.fast import EqualityQuestion, decide
from quintain.verifiers.math.options import MathOptions
from quintain.verifiers.math.read.numbers import parse_plain
from quintain.verifiers.pure import crashed, unreadable
from quintain.verifiers.workers.pool import WorkerPool

INSTALL: Final = "pip install 'quintain[math]'"
YIELD_EVERY: Final = 256
"""The event loop gets its turn after so many items of the fast path."""
POLICY_VERSION: Final = "3"
"""Changes with every change of the policy: what is cached under another version is judged anew."""
SLOW: Final = "quintain.verifiers.math.compare.full"


class MathVerifier(Verifier):
    """Judges whether an answer is the same mathematics as the reference (a number or a text).

    `correct` and `wrong` are judgements; `unparsable` (score 0) is an answer with nothing to check;
    `bad_reference`, `timeout` and `crashed` are failures and no scores.
    """

    name: ClassVar[str] = "math"
    options_type: ClassVar[type | None] = MathOptions

    def __init__(self, options: MathOptions | None = None) -> None:
        self.options = options or MathOptions()
        installed = find_spec("math_verify") is not None
        if self.options.full and not installed:
            raise QuintainError(f"the option full needs math-verify, which is not installed: {INSTALL}")
        self._pool: WorkerPool | None = None
        if installed and self.options.full is not False:
            self._pool = WorkerPool(f"{SLOW}:check", warm_up=f"{SLOW}:warm_up", size=self.options.workers)

    @cached_property
    def version(self) -> str:
        """Our own version of the judgement, and math-verify's and sympy's where they take part in it."""
        from importlib.metadata import version

        if self._pool is None:
            return POLICY_VERSION
        return f"{POLICY_VERSION}+math-verify-{version('math-verify')}+sympy-{version('sympy')}"

    @property
    def pool(self) -> WorkerPool | None:
        """The workers of the full check, or None where only plain numbers are judged."""
        return self._pool

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; `deadline_s` bounds each item, not the batch."""
        verdicts: dict[int, Verdict] = {}
        questions: dict[int, EqualityQuestion] = {}
        for index, item in enumerate(items):
            if index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            started = time.perf_counter()
            found = self._decide(item)
            if isinstance(found, EqualityQuestion):
                questions[index] = found
            else:
                verdicts[index] = replace(found, elapsed_s=time.perf_counter() - started)
        if questions:
            asked = await self._ask(list(questions.values()), deadline_s)
            verdicts.update(zip(questions, asked, strict=True))
        return [verdicts[index] for index in range(len(items))]

    async def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            await self._pool.close()

    def _decide(self, item: Item) -> Verdict | EqualityQuestion:
        try:
            return unreadable(item.answer) or decide(item.answer, item.reference, self.options)
        except Exception as error:  # the boundary: a flaw in reading one item costs that item
            return crashed(error)

    async def _ask(self, questions: Sequence[EqualityQuestion], deadline_s: float | None) -> list[Verdict]:
        if self._pool is None:
            return [_without_math_verify(question) for question in questions]
        verdicts = await self._pool.run(
            [question_item(question) for question in questions],
            deadline_s=self.options.deadline_s if deadline_s is None else deadline_s,
        )
        return [
            replace(verdict, detail={**question.detail, **verdict.detail})
            for question, verdict in zip(questions, verdicts, strict=True)
        ]


def question_item(question: EqualityQuestion) -> dict[str, Any]:
    """What a worker is sent of a question."""
    return {
        "answer": question.answer,
        "reference": question.reference,
        "answer_groups": question.answer_groups,
        "reference_groups": question.reference_groups,
        "policy": question.policy,
    }


def make_math_verifier(**options: Any) -> MathVerifier:
    """The math verifier with the named options of `MathOptions`."""
    return MathVerifier(MathOptions.of("math", options))


def _without_math_verify(question: EqualityQuestion) -> Verdict:
    """The base install knows plain numbers: another answer is unparsable, another reference unusable."""
    if parse_plain(question.reference) is None:
        message = f"the reference {question.reference[:100]!r} is no plain number: {INSTALL}"
        return Verdict.failed(Outcome.BAD_REFERENCE, message, **question.detail)
    detail = {**question.detail, "reason": f"only plain numbers are judged without math-verify: {INSTALL}"}
    return Verdict(0.0, Outcome.UNPARSABLE, None, 0.0, detail)
