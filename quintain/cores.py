"""How many processors this process may count on: all that it may run on, or its share among its like.

What always holds: the shares of processes side by side add up to the machine, or to one each where there are more of
them than processors. So a pool that is sized by `cores` is of a sensible size in each of several processes too.
"""

from __future__ import annotations

import os

CORES_ENV = "QUINTAIN_CORES"


def cores() -> int:
    """This process's processors, at least one."""
    return int(os.environ.get(CORES_ENV, 0)) or len(os.sched_getaffinity(0))


def share_of_cores(processes: int) -> dict[str, str]:
    """The environment variable that gives each of `processes` children its share."""
    return {CORES_ENV: str(max(1, cores() // processes))}
