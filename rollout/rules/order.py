"""Which task comes at which place of a run.

A place p (0, 1, 2, ...) is one group. The order is a pure function of the seed and the place, so a journal that
knows which places were issued knows which prompts were used. Every epoch of a finite source visits each task once, in
an order of its own that is computed place by place: nothing is as large as the source.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import Final

ROUNDS: Final = 6
"""Of the Feistel network. Four look random to anybody (Luby and Rackoff, 1988); six, for sources that are small."""


def task_index(place: int, size: int | None, *, seed: int, shuffle: bool) -> int:
    """The index in its source of the task at `place`; `size` None is an endless source, taken in order."""
    if size is None:
        return place
    if size <= 0:
        raise ValueError("the split holds no task")
    epoch, at = divmod(place, size)
    if not shuffle:
        return at
    key = derive_seed(seed, "epoch", epoch).to_bytes(8, "little")
    at = _shuffled(at, size, key)
    while at >= size:  # it walks along its cycle until it is within the source again: still one to one
        at = _shuffled(at, size, key)
    return at


def _shuffled(at: int, size: int, key: bytes) -> int:
    """Where a Feistel network takes `at`: one to one on the numbers below the least square that `size` fits in."""
    side = isqrt(size - 1) + 1
    left, right = divmod(at, side)
    for turn in range(ROUNDS):
        digest = hashlib.blake2b(right.to_bytes(8, "little"), digest_size=8, key=key, salt=bytes([turn])).digest()
        left, right = right, (left + int.from_bytes(digest, "little")) % side
    return left * side + right


def derive_seed(*parts: int | str) -> int:
    """A 62-bit seed that is a hash of `parts`: the same on every machine, different for different parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
