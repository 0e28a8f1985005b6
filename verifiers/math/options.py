"""What a user may choose about the math verifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from quintain.failure import QuintainError
from quintain.nearest import one_of

Extraction = Literal["auto", "boxed", "whole"]


@dataclass(frozen=True, slots=True)
class MathOptions:
    """Options of the math verifier.

    `extraction`: where in the text the answer is (see `quintain.verifiers.math.extract`): `auto` takes the
    best marked place, `boxed` only a `\\boxed{}`, `whole` the whole text.
    `deadline_s`: wall time for each item that needs more than the fast path.
    `places`: a decimal may stand for a number that is not whole if it agrees to so many decimal places (and
    to five or six significant digits); 0 asks for exact equality. Whole numbers are always matched exactly.
    `allow_unevaluated`: whether "17 + 8" is a correct answer where the reference is the plain number 25. Off,
    because a policy would learn to repeat the question.
    `full`: whether answers beyond plain numbers are checked, with math-verify: True insists (an error where
    it is not installed), False never does, None does where it is installed.
    `workers`: processes for that; None is one for each processor.
    """

    extraction: Extraction = "auto"
    deadline_s: float = 5.0
    places: int = 6
    allow_unevaluated: bool = False
    full: bool | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.extraction not in get_args(Extraction):
            raise QuintainError(f"extraction is one of {', '.join(get_args(Extraction))}, not {self.extraction!r}")
        if not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise QuintainError(f"deadline_s is a positive number of seconds, not {self.deadline_s!r}")
        if not 0 <= self.places <= 100:
            raise QuintainError(f"places is a number of decimal places from 0 to 100, not {self.places!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> MathOptions:
        """The options that `options` names. Raises `QuintainError` for a name that there is not."""
        known = [option.name for option in fields(cls)]
        for name in options:
            if name not in known:
                raise QuintainError(f"the math verifier has no option {name!r}{one_of(name, known)}")
        return cls(**options)
