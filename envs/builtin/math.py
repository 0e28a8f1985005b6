"""Arithmetic questions, bare or as word problems, judged by the math verifier: 1.0 where correct, else 0.0.

What always holds: `heldout` of all the ordered questions "a op b" are chosen by `seed` and
make the finite split `heldout`; the endless split `train` never asks one of them ("17 + 8" held out leaves "8 + 17"
in). The same options give the same tasks at the same index on every machine and Python version.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from quintain.envs.builtin.numbered import numbered
from quintain.envs.builtin.word_problems import word_problems
from quintain.envs.single_turn import SingleTurnEnv
from quintain.failure import QuintainError
from quintain.messages import user
from quintain.task import Task, TaskSource

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
        word: bool = False,
        steps: int = 2,
        heldout: int = 200,
        seed: int = 0,
    ) -> TaskSource:
        """The tasks of `split`.

        `operations` are any of + - *, the operands whole numbers from `low` to `high`. With `word` they are in a story
        of so many `steps`.
        """
        if not operations or set(operations) - set(_OPERATIONS) or len(set(operations)) < len(operations):
            raise QuintainError(f"operations must be some of + - *, each once, not {operations!r}")
        if low > high:
            raise QuintainError(f"low must not be more than high, but {low} > {high}")
        if word:
            return word_problems(split, operations, low, high, steps, heldout=heldout, seed=seed)
        questions = _Questions(operations, low, high)
        return numbered(split, questions.size, questions.task, heldout=heldout, seed=seed)


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
