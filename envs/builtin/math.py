"""Arithmetic questions, judged by the math verifier: 1.0 where correct, else 0.0.

What always holds: `heldout` of all the ordered questions "a op b" are chosen by `seed` and
make the finite split `heldout`; the endless split `train` never asks one of them ("17 + 8" held out leaves "8 + 17"
in). The same options give the same tasks at the same index on every machine and Python version.
"""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from quintain.envs.single_turn import SingleTurnEnv
from quintain.failure import QuintainError
from quintain.messages import user
from quintain.task import EndlessTasks, Task, TaskSource

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class MathEnv(SingleTurnEnv):
    """Arithmetic: "What is 17 + 8?"; reward 1 for a correct answer."""

    splits = ("train", "heldout")
    verifier = "math"

    @classmethod
    def tasks(
        cls,
        split: str,
        *,
        operations: str = "+",
        low: int = 1,
        high: int = 30,
        heldout: int = 200,
        seed: int = 0,
    ) -> TaskSource:
        """The tasks of `split`.

        `operations` are any of + - *, the operands whole numbers from `low` to `high`.
        """
        if heldout < 1:
            raise QuintainError(f"heldout must be at least 1, not {heldout}")
        if not operations or set(operations) - set(_OPERATIONS) or len(set(operations)) < len(operations):
            raise QuintainError(f"operations must be some of + - *, each once, not {operations!r}")
        if low > high:
            raise QuintainError(f"low must not be more than high, but {low} > {high}")
        questions = _Questions(operations, low, high)
        if heldout >= questions.size:
            raise QuintainError(f"there are {questions.size} questions: heldout must leave some, not be {heldout}")
        hidden = draw(heldout, questions.size, f"{seed}:heldout")
        if split == "heldout":
            return [questions.task(number) for number in hidden]
        skipped = sorted(hidden)

        def make(index: int) -> Task:
            return questions.task(nth_without(skipped, hashed(f"{seed}:{index}", questions.size - len(skipped))))

        return EndlessTasks(make)


class _Questions:
    """All ordered questions, numbered."""

    def __init__(self, operations: str, low: int, high: int) -> None:
        self._operations, self._low = operations, low
        self._width = high - low + 1
        self.size = len(operations) * self._width**2

    def task(self, number: int) -> Task:
        rest, b = divmod(number, self._width)
        operation, a = divmod(rest, self._width)
        sign, a, b = self._operations[operation], a + self._low, b + self._low
        return Task(f"{a}{sign}{b}", (user(f"What is {a} {sign} {b}?"),), str(_OPERATIONS[sign](a, b)))


def hashed(key: str, below: int) -> int:
    """A number in [0, below) that depends on `key` alone: the same everywhere, unlike `random`'s."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big") % below


def draw(count: int, below: int, key: str) -> list[int]:
    """`count` different numbers in [0, below), in an order that depends on `key` alone (Floyd's sample)."""
    drawn: dict[int, None] = {}
    for top in range(below - count, below):
        candidate = hashed(f"{key}:{top}", top + 1)
        drawn[top if candidate in drawn else candidate] = None
    return list(drawn)


def nth_without(skipped: Sequence[int], n: int) -> int:
    """The `n`-th of the numbers 0, 1, 2, ... that are not in the sorted `skipped`."""
    # skipped[i] - i numbers that stay come before skipped[i], so the n-th comes after all with skipped[i] - i <= n
    return n + bisect_right(range(len(skipped)), n, key=lambda i: skipped[i] - i)
