"""Pieces of a step side by side on a CPU: each in a thread, with a gradient of its own, summed in a fixed order.

An operation that is spread over threads waits at its end for the slowest of them; with small operations, and cores that
other processes take for a while, that is most of the time. Whole pieces side by side wait once a step.

Invariant: the sum does not depend on which thread was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import torch
from torch import Tensor, nn

Job = Callable[[], Tensor]
"""Computes a loss [] whose gradient is wanted."""


class Streams:
    """`count` threads with an equal share of `threads` each, for the gradients of `parameters`.

    Each keeps gradients of its own until the end of a step. Not for models that draw random numbers as they train
    (dropout): the generator is shared, and the order of draws would be a race.
    """

    def __init__(self, count: int, threads: int, parameters: Sequence[nn.Parameter]) -> None:
        self.count, self._parameters = count, tuple(parameters)
        share = max(1, threads // count)
        self._pool = ThreadPoolExecutor(count, "stream", initializer=lambda: torch.set_num_threads(share))
        # What a thread sets is also what torch gives to threads that are new to it: have all of them set it now.
        together = Barrier(count)
        list(self._pool.map(lambda _: together.wait(), range(count)))
        torch.set_num_threads(threads)

    def add_gradients(self, jobs: Sequence[Job]) -> None:
        """Add the gradients of all losses to the parameters'. What a job raises is raised, and nothing is added."""
        lanes = [self._pool.submit(self._sum, jobs[lane :: self.count]) for lane in range(min(self.count, len(jobs)))]
        wait(lanes)
        sums = [lane.result() for lane in lanes]
        for parameter, *parts in zip(self._parameters, *sums, strict=True):
            total = _added([parameter.grad, *parts])
            # autograd may hand out one tensor several times, or a view of one number: what is kept is a copy.
            parameter.grad = total.clone() if total is not None and sum(x is not None for x in parts) == 1 else total

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _sum(self, jobs: Sequence[Job]) -> list[Tensor | None]:
        total: list[Tensor | None] = [None] * len(self._parameters)
        for job in jobs:
            found = torch.autograd.grad(job(), self._parameters, allow_unused=True)
            total = [_added(pair) for pair in zip(total, found, strict=True)]
        return total


def _added(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of those that are there, in order."""
    total = None
    for tensor in tensors:
        if tensor is not None:
            total = tensor if total is None else total + tensor
    return total


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether `model` has dropout anywhere (an adapter's; `load_policy` turns off the model's own)."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
