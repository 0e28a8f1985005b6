"""Generated tasks by number, and splits of them that have no task in common.

What always holds: the same arguments give the same tasks at the same index on every machine and Python version.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from quintain.failure import QuintainError
from quintain.task import EndlessTasks, Task, TaskSource

T = TypeVar("T")


def numbered(split: str, size: int, task: Callable[[int], Task], *, heldout: int, seed: int) -> TaskSource:
    """The tasks of `split`: `heldout` of the numbers below `size`, chosen by `seed`, are the finite split "heldout".

    The endless split "train" never has one of them. Raises QuintainError where that cannot be.
    """
    if not 1 <= heldout < size:
        raise QuintainError(f"heldout must be at least 1 and leave some of the {size} tasks, not be {heldout}")
    hidden = draw(heldout, size, f"{seed}:heldout")
    if split == "heldout":
        return [task(number) for number in hidden]
    skipped = sorted(hidden)

    def make(index: int) -> Task:
        return task(nth_without(skipped, hashed(f"{seed}:{index}", size - len(skipped))))

    return EndlessTasks(make)


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
