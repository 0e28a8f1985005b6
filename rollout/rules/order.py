"""Which task comes at which place of a run.

A place p (0, 1, 2, ...) is one group. The order is a pure function of the seed and the place, so a journal that
knows which places were issued knows which prompts were used. Every epoch of a finite source visits each task once.
"""

from __future__ import annotations

import hashlib

import numpy as np


def task_index(place: int, size: int | None, *, seed: int, shuffle: bool) -> int:
    """The index in its source of the task at `place`; `size` None is an endless source, taken in order."""
    if size is None:
        return place
    if size <= 0:
        raise ValueError("the split holds no task")
    epoch, at = divmod(place, size)
    if not shuffle:
        return at
    return int(np.random.default_rng([seed, epoch]).permutation(size)[at])


def derive_seed(*parts: int | str) -> int:
    """A 62-bit seed that is a hash of `parts`: the same on every machine, different for different parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
