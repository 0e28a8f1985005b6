"""What an evaluation may claim: pass@k and means, each with a 95 % confidence interval. Pure.

The unit that is drawn at random is the *task*: samples of one task resemble each other, so an interval that counted
them as independent would be too narrow. Every standard error here is over tasks, clustered where there are several
samples of each (Miller 2024, "Adding Error Bars to Evals", section 2.2, with the factor C/(C-1) of few clusters, so
that one sample of each task gives the usual standard error of a mean).

- pass@k of a task with c correct ones of n samples is 1 - C(n-c, k)/C(n, k), the chance that k of them drawn without
  replacement hold a correct one: unbiased for any k <= n (Chen et al. 2021, "Evaluating Large Language Models Trained
  on Code", equation 1). The figure is the mean over tasks.
- Intervals of what lies in [0, 1] are Wilson's (1927), with n the effective number of samples: n divided by how much
  larger the variance is than that of independent draws (Dean & Pagano 2015), and never more than there were draws (of k
  samples, for pass@k). They never leave [0, 1] and do not collapse to a point at 0 % or 100 %; with one right-or-wrong
  sample of each task they are exactly Wilson's.
- Intervals of other means are Student's t with C - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

CONFIDENCE: Final = 0.95
Z: Final = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval `low` to `high`, from `samples` values of `tasks` tasks.

    `se` is the standard error. Where one task is all there is, nobody knows how much tasks differ: no interval.
    """

    value: float
    low: float | None
    high: float | None
    se: float | None
    tasks: int
    samples: int

    def as_json(self) -> dict[str, Any]:
        """The figure with its interval as [low, high]."""
        ci95 = None if self.low is None else [self.low, self.high]
        return {"value": self.value, "ci95": ci95, "se": self.se, "tasks": self.tasks}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from `c` correct ones of `n` samples of a task.

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n: fewer samples than k say nothing about it.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def pass_estimate(tasks: Sequence[tuple[int, int]], k: int) -> Estimate | None:
    """The mean pass@k of `tasks`, each (n samples, c of them correct), over those with at least k samples.

    None where no task has as many. `samples` counts those that were drawn from.
    """
    enough = [(n, c) for n, c in tasks if n >= k]
    if not enough:
        return None
    samples = sum(n for n, _ in enough)
    found = _mean([[pass_at_k(n, c, k)] for n, c in enough], draws=samples / k)
    return Estimate(found.value, found.low, found.high, found.se, found.tasks, samples)


def mean_estimate(tasks: Sequence[Sequence[float]], *, rate: bool | None = None) -> Estimate | None:
    """The mean of all values, which come from `tasks`; tasks without values count for nothing. None where all do.

    A `rate`, whose values cannot leave [0, 1], gets a Wilson interval, anything else one of Student's t; unless told,
    values that all lie in [0, 1] are taken for one.
    """
    values = [list(task) for task in tasks if len(task)]
    if not values:
        return None
    if rate is None:
        rate = all(0.0 <= value <= 1.0 for task in values for value in task)
    return _mean(values, draws=sum(map(len, values)) if rate else None)


def _mean(tasks: Sequence[Sequence[float]], *, draws: float | None) -> Estimate:
    """The estimate of the mean of all values in `tasks`, none of them empty.

    `draws` says of a rate how many draws it may count as at most; None says that it is none.
    """
    count, samples = len(tasks), sum(map(len, tasks))
    mean = math.fsum(value for task in tasks for value in task) / samples
    if count < 2:
        return Estimate(mean, None, None, None, count, samples)
    sums = [math.fsum(value - mean for value in task) for task in tasks]
    se = math.sqrt(math.fsum(s * s for s in sums) * count / (count - 1)) / samples
    if draws is None:
        half = t_quantile(count - 1) * se
        return Estimate(mean, mean - half, mean + half, se, count, samples)
    # what one draw of 0 or 1 would vary by, over how much the mean does, both with the factor of few tasks; at 0 and 1
    # nothing tells how alike the samples of a task are: then only tasks are counted
    spread = mean * (1.0 - mean) * count / (count - 1)
    effective = spread / max(se**2, spread / draws) if spread > 0 else float(count)
    low, high = wilson(mean, max(effective, 1.0))
    return Estimate(mean, low, high, se, count, samples)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion `p` of `n` draws; `n` may be a fraction."""
    z2 = Z * Z / n
    middle = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (p * (1 - p) + z2 / 4)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def t_quantile(df: int) -> float:
    """The 97.5 % quantile of Student's t with `df` >= 1 degrees of freedom, to half a percent.

    Exact for one and two; from three on the expansion in 1/df (Abramowitz & Stegun 26.7.5).
    """
    p = (1 + CONFIDENCE) / 2
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(np.polynomial.polynomial.polyval(1 / df, terms))
