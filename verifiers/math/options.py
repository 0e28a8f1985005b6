"""What a user may choose about the math verifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintain.verifiers.math.find.extract import Extraction
from quintain.verifiers.math.find.reference import ReferenceMode
from quintain.verifiers.options import ThinkingOptions, WorkerOptions


class MathOptions(WorkerOptions, ThinkingOptions):
    """Options of the math verifier. `deadline_s` and `workers` are for what needs more than the fast path."""

    extraction: Extraction = "auto"
    """Where in the text the answer is (see `quintain.verifiers.math.find.extract`): `auto` takes the best marked place,
    `boxed` only a `\\boxed{}`, `whole` the whole text."""
    reference: ReferenceMode = "auto"
    """What of a reference counts: `whole`, all of it; `last_box`, what is in its last `\\boxed{}`; `last_formula`, its
    last `$…$`; `auto`, its box, or what follows its last `####`, or else all of it."""
    places: Annotated[int, Field(ge=0, le=100)] = 6
    """A decimal may stand for a number that is not whole if it agrees to so many decimal places (and to as many
    significant digits); 0 asks for exact equality. Whole numbers are always matched exactly. An item with tolerances of
    its own (see `quintain.verifiers.math.find.reference`) is judged by those instead."""
    units: Literal["lenient", "strict"] = "lenient"
    """`lenient`: a unit that only one side has is taken to be the other's too, because the question names it; `strict`:
    both have one, or none. Different units are converted under both; 12 m is never 12 cm."""
    percent: Literal["strict", "lenient"] = "strict"
    """12 % is 0.12 and never 12. `lenient`: but an answer may leave out the percent sign that the reference has, so 12
    is 12 %."""
    relations_are_sets: bool = True
    """Whether the answer 1 < x < 2 is the interval (1, 2) that the reference is; the other way round it always is."""
    rename: bool = False
    """Whether variables may have other names: f(x) is then f(y), and x + 2y is b + 2a."""
    allow_unevaluated: bool = False
    """Whether "17 + 8" is a correct answer where the reference is the plain number 25, and a sum, product, integral,
    limit, determinant, greatest common divisor or the like where the reference has none. Off, because a policy would
    learn to repeat the question."""
    full: bool | None = None
    """Whether answers beyond plain numbers are checked, with math-verify and mpmath: True insists (an error where they
    are not installed), False never does, None does where they are installed."""
