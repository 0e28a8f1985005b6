"""Which task of a finite split comes next, by how hard the tasks have turned out to be.

Every task is in one pool: unseen, or hard, medium or easy by the share of episodes that passed in its last visits. A
visit draws its pool by the shares, those of empty pools left out, and takes of that pool the task whose last visit is
longest ago; unseen ones come in the seed's order. What always holds: the choice is a function of the seed, of the tasks
that were issued before and of what was measured of them; a task that is under way is not issued again unless all are;
what could not be measured, since every episode failed, counts as no visit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from statistics import fmean


class Pool(StrEnum):
    """What is known of a task."""

    UNSEEN = "unseen"
    HARD = "hard"
    MEDIUM = "medium"
    EASY = "easy"


@dataclass(frozen=True, slots=True)
class CurriculumRules:
    """The `shares` of the pools, in the order of `Pool`, and what makes a task hard or easy.

    Hard is a pass rate of at most `hard`, easy one of at least `easy`, over the last `window` visits; an episode passes
    from the reward `pass_at` on.
    """

    shares: tuple[float, ...]
    hard: float
    easy: float
    window: int
    pass_at: float


class Curriculum:
    """The tasks of a split of `size`; `fresh` gives the n-th of them to be seen for the first time."""

    def __init__(self, rules: CurriculumRules, size: int, fresh: Callable[[int], int]) -> None:
        self._rules, self._size, self._fresh = rules, size, fresh
        self._seen = 0  # how many were issued for the first time
        self._under_way: OrderedDict[int, int] = OrderedDict()  # how often, the longest ago issued first
        self._pools: dict[Pool, OrderedDict[int, None]] = {pool: OrderedDict() for pool in Pool}  # as above
        self._rates: dict[int, deque[float]] = {}

    def choice(self, draw: float) -> int:
        """The task to issue; `draw` in [0, 1) decides of which pool."""
        filled = [pool for pool in Pool if self._pools[pool] or (pool is Pool.UNSEEN and self._seen < self._size)]
        if not filled:
            return next(iter(self._under_way))
        of_pool = dict(zip(Pool, self._rules.shares, strict=True))
        shares = [of_pool[pool] for pool in filled]
        if not sum(shares):  # only pools that have no share are left
            shares = [1.0] * len(filled)
        bounds = list(accumulate(shares))
        pool = filled[min(bisect_right(bounds, draw * bounds[-1]), len(filled) - 1)]
        fresh = pool is Pool.UNSEEN and self._seen < self._size
        return self._fresh(self._seen) if fresh else next(iter(self._pools[pool]))

    def issued(self, task: int) -> None:
        """`task` is under way."""
        known = [pool for pool in self._pools.values() if task in pool]
        self._seen += not known and task not in self._under_way
        for pool in known:
            del pool[task]
        self._under_way[task] = self._under_way.pop(task, 0) + 1

    def measured(self, task: int, rewards: Sequence[float]) -> None:
        """The visit of `task` that was issued first is over; `rewards` are of the episodes that did not fail."""
        if rewards:
            rates = self._rates.setdefault(task, deque(maxlen=self._rules.window))
            rates.append(fmean(reward >= self._rules.pass_at for reward in rewards))
        self._under_way[task] -= 1
        if not self._under_way[task]:
            del self._under_way[task]
            self._pools[self._pool_of(task)][task] = None

    def _pool_of(self, task: int) -> Pool:
        if task not in self._rates:
            return Pool.UNSEEN
        rate = fmean(self._rates[task])
        return Pool.HARD if rate <= self._rules.hard else Pool.EASY if rate >= self._rules.easy else Pool.MEDIUM
