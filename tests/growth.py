"""How the time that a function takes grows with its input: a bound that holds on a slow or busy machine too."""

from __future__ import annotations

import time
from collections.abc import Callable

NOTHING_S = 0.002  # less than this is not measured but rounded up


def growth(work: Callable[[str], object], short: str, long: str) -> float:
    """How many times the CPU time of `work(short)` does `work(long)` take? Of each the best of three."""

    def best(text: str) -> float:
        times = []
        for _ in range(3):
            began = time.process_time()
            work(text)
            times.append(time.process_time() - began)
        return max(NOTHING_S, min(times))

    return best(long) / best(short)
