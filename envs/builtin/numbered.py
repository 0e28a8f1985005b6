"""Generated tasks by number, and splits of them that have no task in common.

What always holds: the same arguments give the same tasks at the same index on every machine and Python version.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from quintain.failure import QuintainError
from quintain.task import EndlessTasks, Task, TaskSource

T = TypeVar("T")
DRAWS: Final = 100
"""How often another task is drawn in place of one that asks what is held out."""


def numbered(split: str, size: int, task: Callable[[int], Task], *, heldout: int, seed: int) -> TaskSource:
    """The tasks of `split`: `heldout` of the numbers below `size`, chosen by `seed`, are the finite split "heldout".

    The endless split "train" never has one of them, nor one of another number that asks the same. Raises QuintainError
    where that cannot be.
    """
    if not 1 <= heldout < size:
        raise QuintainError(f"heldout must be at least 1 and leave some of the {size} tasks, not be {heldout}")
    hidden = draw(heldout, size, f"{seed}:heldout")
    tasks = [task(number) for number in hidden]
    if split == "heldout":
        return tasks
    skipped, taken = sorted(hidden), set(map(_content, tasks))

    def make(index: int) -> Task:
        for again in range(DRAWS):
            key = f"{seed}:{index}:{again}" if again else f"{seed}:{index}"
            made = task(nth_without(skipped, hashed(key, size - len(skipped))))
            if _content(made) not in taken:
                return made
        raise QuintainError(f"there are too few different tasks for heldout: {heldout}, with these options")

    return EndlessTasks(make)


def _content(task: Task) -> str:
    return repr((task.prompt, task.reference, task.info, task.seed))


def hashed(key: str, below: int) -> int:
    """A number in [0, below) that depends on `key` alone: the same everywhere, unlike `random`'s."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big") % below


def chosen(options: Sequence[T], key: str) -> T:
    """One of `options`, by `key` alone."""
    return options[hashed(key, len(options))]


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
