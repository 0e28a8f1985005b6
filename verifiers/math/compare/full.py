"""The full check of one item, in a worker process: reads both sides into shapes and judges them.

It never raises but for what says that the process is unfit (memory, recursion), which the pool must know. What
the reference says decides about the reference alone: where it cannot be read, or computed, that is
`bad_reference` whatever the answer is.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

from quintain.failure import one_line
from quintain.verdict import Outcome
from quintain.verifiers.math.compare import algebra
from quintain.verifiers.math.compare.equality import Closeness, has_value
from quintain.verifiers.math.compare.judge import Judge
from quintain.verifiers.math.read.numbers import decimal_comma
from quintain.verifiers.math.read.reading import read
from quintain.verifiers.math.read.shapes import Relation, Shape, Value, parts_of
from quintain.verifiers.math.read.tree import Undecided, Unreadable

_WARM_UP: Final = (
    (r"2\sqrt{3}+1", r"1+\sqrt{12}"),
    (r"\frac{\pi}{3}", "1.047198"),
    (r"\{1, -2\}", r"\{-2, 1\}"),
    (r"[0, 1) \cup (2, \infty)", r"(2, \infty) \cup [0, 1)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 5 \end{bmatrix}"),
    ("y = 2x + 1", "y - 2x = 1"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"e^{i\pi}", "-1"),
    (r"\int_0^1 x dx", r"\frac12"),
    (r"\sum_{k=1}^{3} k", "6"),
)


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on what `fast.decide` asks."""
    judge = _judge(item["close"], item["judge"])
    try:
        reference = read(item["reference"], braces_group=item["reference_groups"])
        _must_be_read(reference)
    except (Undecided, Unreadable) as reason:
        return {"outcome": Outcome.BAD_REFERENCE, "message": f"{item['reference'][:100]!r} cannot be used: {reason}"}
    try:
        answer = read(item["answer"], braces_group=item["answer_groups"])
        equal = judge.same(answer, reference)
        if not equal:
            equal = _with_decimal_comma(judge, item, answer, reference)
    except (Undecided, Unreadable) as reason:
        return {"outcome": Outcome.UNPARSABLE, "detail": {"reason": one_line(str(reason), 200)}}
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the boundary: what cannot be compared with the reference is not equal to it
        return {"outcome": Outcome.WRONG, "detail": {"reason": one_line(f"{type(error).__name__}: {error}", 200)}}
    return {"outcome": Outcome.CORRECT if equal else Outcome.WRONG}


def warm_up() -> None:
    """Load the parser's tables and caches, which are then there in every forked worker."""
    algebra.quiet()
    groups = {"answer_groups": False, "reference_groups": False}
    for answer, reference in _WARM_UP:
        check({"answer": answer, "reference": reference, **groups, "close": {}, "judge": {}})


def _judge(close: dict[str, Any], policy: dict[str, Any]) -> Judge:
    """The judge with those fields of `Closeness`, tolerances as fractions in a text, and those of its own."""
    read: dict[str, Any] = {name: Fraction(one) if isinstance(one, str) else one for name, one in close.items()}
    near = Closeness(**read)
    return Judge(fallback=lambda answer, reference: algebra.same(answer, reference, near), close=near, **policy)


def _must_be_read(shape: Shape) -> None:
    """Raise `Unreadable` where an expression in `shape` is read neither here nor by math-verify, or has no value."""
    if isinstance(shape, Value):
        if shape.tree is None and not algebra.readable(shape.text):
            raise Unreadable(f"{shape.text[:100]!r} is no expression")
        if shape.tree is not None and not has_value(shape.tree):
            raise Unreadable(f"{shape.text[:100]!r} has no value")
    for part in shape.sides[-1:] if isinstance(shape, Relation) else parts_of(shape):
        _must_be_read(part)


def _with_decimal_comma(judge: Judge, item: dict[str, Any], answer: Shape, reference: Shape) -> bool:
    """`2,74` beside `2.74`: where one side is a number, the other may have a decimal comma."""
    answered, expected = decimal_comma(item["answer"]), decimal_comma(item["reference"])
    if isinstance(reference, Value) and answered is not None:
        return judge.same(read(answered), reference)
    return isinstance(answer, Value) and expected == item["answer"].strip()
