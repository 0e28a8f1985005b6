"""What a user may choose about the math verifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from quintain.failure import QuintainError
from quintain.nearest import one_of

Extraction = Literal["auto", "boxed", "whole"]
ReferenceMode = Literal["auto", "whole", "last_box", "last_formula"]
Units = Literal["lenient", "strict"]
Percent = Literal["strict", "lenient"]


@dataclass(frozen=True, slots=True)
class MathOptions:
    """Options of the math verifier.

    `extraction`: where in the text the answer is (see `quintain.verifiers.math.find.extract`): `auto` takes the
    best marked place, `boxed` only a `\\boxed{}`, `whole` the whole text.
    `reference`: what of a reference counts: `whole`, all of it; `last_box`, what is in its last `\\boxed{}`;
    `last_formula`, its last `$…$`; `auto`, its box, or what follows its last `####`, or else all of it.
    `deadline_s`: wall time for each item that needs more than the fast path.
    `places`: a decimal may stand for a number that is not whole if it agrees to so many decimal places (and
    to as many significant digits); 0 asks for exact equality. Whole numbers are always matched exactly. An item
    with tolerances of its own (see `quintain.verifiers.math.find.reference`) is judged by those instead.
    `units`: `lenient`: a unit that only one side has is taken to be the other's too, because the question names
    it; `strict`: both have one, or none. Different units are converted under both; 12 m is never 12 cm.
    `percent`: 12 % is 0.12 and never 12. `lenient`: but an answer may leave out the percent sign that the
    reference has, so 12 is 12 %.
    `relations_are_sets`: whether the answer 1 < x < 2 is the interval (1, 2) that the reference is; the other way
    round it always is.
    `rename`: whether variables may have other names: f(x) is then f(y), and x + 2y is b + 2a.
    `allow_unevaluated`: whether "17 + 8" is a correct answer where the reference is the plain number 25, and a sum,
    product, integral, limit, determinant, greatest common divisor or the like where the reference has none. Off,
    because a policy would learn to repeat the question.
    `full`: whether answers beyond plain numbers are checked, with math-verify and mpmath: True insists (an error
    where they are not installed), False never does, None does where they are installed.
    `workers`: processes for that; None is one for each processor.
    """

    extraction: Extraction = "auto"
    reference: ReferenceMode = "auto"
    deadline_s: float = 5.0
    places: int = 6
    units: Units = "lenient"
    percent: Percent = "strict"
    relations_are_sets: bool = True
    rename: bool = False
    allow_unevaluated: bool = False
    full: bool | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("extraction", Extraction),
            ("reference", ReferenceMode),
            ("units", Units),
            ("percent", Percent),
        ):
            if getattr(self, name) not in get_args(choices):
                raise QuintainError(f"{name} is one of {', '.join(get_args(choices))}, not {getattr(self, name)!r}")
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
