"""The math verifier: plain numbers in this process, everything else in killable workers with math-verify.

What always holds, beyond what holds for every verifier: the fast path and the full check agree; the base
install judges plain numbers, and says which references need more; no worker starts before an item needs one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Final

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.math.compare.fast import decide
from quintain.verifiers.math.options import MathOptions
from quintain.verifiers.math.read.numbers import parse_plain
from quintain.verifiers.options import Options, is_installed, versioned
from quintain.verifiers.pure import unparsable
from quintain.verifiers.workers.verifier import PooledVerifier

INSTALL: Final = "pip install 'quintain[math]'"
POLICY_VERSION: Final = "3"
"""Changes with every change of the policy: what is cached under another version is judged anew."""


class MathVerifier(PooledVerifier[MathOptions]):
    """Judges whether an answer is the same mathematics as the reference (a number or a text).

    `correct` and `wrong` are judgements; `unparsable` (score 0) is an answer with nothing to check;
    `bad_reference`, `timeout` and `crashed` are failures and no scores.
    """

    name: ClassVar[str] = "math"
    options_type: ClassVar[type[Options]] = MathOptions
    check: ClassVar[str] = "quintain.verifiers.math.compare.full:check"
    warm_up: ClassVar[str | None] = "quintain.verifiers.math.compare.full:warm_up"

    def __init__(self, options: MathOptions | None = None) -> None:
        super().__init__(options)
        installed = is_installed("math-verify")
        if self.options.full and not installed:
            raise QuintainError(f"the option full needs math-verify, which is not installed: {INSTALL}")
        self._full = installed and self.options.full is not False

    @cached_property
    def version(self) -> str:
        """Our own version of the judgement, and math-verify's and sympy's where they take part in it."""
        return versioned(POLICY_VERSION, *(("math-verify", "sympy") if self._full else ()))

    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """What the worker is asked, where the fast path leaves something open."""
        found = decide(item.answer, item.reference, self.options)
        return found if isinstance(found, Verdict) or self._full else _without_math_verify(found)


def _without_math_verify(question: dict[str, Any]) -> Verdict:
    """The base install knows plain numbers: another answer is unparsable, another reference unusable."""
    detail, reference = question["detail"], question["reference"]
    if parse_plain(reference) is None:
        message = f"the reference {reference[:100]!r} is no plain number: {INSTALL}"
        return Verdict.failed(Outcome.BAD_REFERENCE, message, **detail)
    return unparsable(f"only plain numbers are judged without math-verify: {INSTALL}", **detail)
