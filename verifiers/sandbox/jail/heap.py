"""Makes the zygote's memory cheap to share.

A page that is written after a fork is copied, and that is most of what a fork costs. What always holds after `settle`:
nothing that exists by then is looked at by the garbage collector again, and new small objects lie together in fresh
pages, not in the holes that loading modules has left in old ones.
"""

from __future__ import annotations

import gc

POOL_BYTES = 1 << 14
POOL_HEAD_BYTES = 48
"""CPython keeps objects of one size in aligned pools of so many bytes, after a head (Objects/obmalloc.c)."""
STEP_BYTES = 16
LARGEST_BYTES = 512
BYTES_HEAD_BYTES = 33
MOST_HOLES = 20_000
"""For one size. An interpreter with another allocator has no pools to be found, and so gets no more than these."""
ENOUGH = 3
"""So many objects one after the other from the beginning of a pool: it is a fresh one."""


def settle() -> list[object]:
    """Do it now; the objects that fill the holes, which the caller keeps."""
    gc.collect()
    fillers: list[object] = []
    numbers = range(1 << 40, (1 << 40) + MOST_HOLES)
    for size in range(STEP_BYTES, LARGEST_BYTES + 1, STEP_BYTES):
        in_row = 0
        for number in numbers:
            filler = made(size, number)
            fillers.append(filler)
            place = id(filler) % POOL_BYTES - POOL_HEAD_BYTES
            in_row = in_row + 1 if place == in_row * size else int(place == 0)
            if in_row == ENOUGH:
                del fillers[-ENOUGH:]
                break
        del filler, number
    gc.freeze()
    return fillers


def made(size: int, number: int) -> object:
    """An object of so many bytes, which nothing looks into."""
    if size == STEP_BYTES:
        return object()
    return number if size == 2 * STEP_BYTES else bytes(size - BYTES_HEAD_BYTES)
