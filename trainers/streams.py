"""Pieces of a step side by side on a CPU: each in a thread, with a gradient of its own, summed in a fixed order.

An operation that is spread over threads waits at its end for the slowest of them; with small operations, and cores that
other processes take for a while, that is most of the time. Whole pieces side by side wait once a step.

Invariant: the sum does not depend on which thread was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import torch
from torch import Tensor, nn

Job = Callable[[], Tensor]
"""Computes a loss [] whose gradient is wanted."""


class Streams:
    """`count` threads with an equal share of `threads` each, for the gradients of `model`, whose embeddings from now on
    say only of words that were read how they are to change: no thread holds zeros for all others, and where the LM
    head's weight is the same, its gradient takes them in.

    Each keeps gradients of its own until the end of a step. Not for models that draw random numbers as they train
    (dropout): the generator is shared, and the order of draws would be a race.
    """

    def __init__(self, count: int, threads: int, model: nn.Module) -> None:
        self.count, self._parameters = count, parameters_of(model)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight.requires_grad:
                module.sparse = True
        share = max(1, threads // count)
        self._pool = ThreadPoolExecutor(count, "stream", initializer=lambda: torch.set_num_threads(share))
        # What a thread sets is also what torch gives to threads that are new to it: have all of them set it now.
        together = Barrier(count)
        list(self._pool.map(lambda _: together.wait(), range(count)))
        torch.set_num_threads(threads)

    def add_gradients(self, jobs: Sequence[Job]) -> None:
        """Add the gradients of all losses to the parameters'. What a job raises is raised, and nothing is added."""
        if len(jobs) == 1:  # in this thread, which has all of torch's
            sums = [self._sum(jobs)]
        else:
            lanes = [self._pool.submit(self._sum, jobs[at :: self.count]) for at in range(min(self.count, len(jobs)))]
            wait(lanes)
            sums = [lane.result() for lane in lanes]
        for parameter, *parts in zip(self._parameters, *sums, strict=True):
            total = parameter.grad
            for part in parts:
                total = _added(total, part)
            parameter.grad = total.to_dense() if total is not None and total.is_sparse else total

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _sum(self, jobs: Sequence[Job]) -> list[Tensor | None]:
        total: list[Tensor | None] = [None] * len(self._parameters)
        for job in jobs:
            found = torch.autograd.grad(job(), self._parameters, allow_unused=True)
            seen: set[int] = set()
            for at, gradient in enumerate(found):
                total[at] = _added(total[at], None if gradient is None else _own(gradient, seen))
            del found, gradient  # the next job's are made meanwhile
        return total


def _own(gradient: Tensor, seen: set[int]) -> Tensor:
    """`gradient` to keep and add to: a copy, where autograd handed out one tensor several times or a view of a few
    numbers."""
    if gradient.is_sparse:
        return gradient
    memory = gradient.untyped_storage()
    shared = memory.data_ptr() in seen or memory.nbytes() != gradient.numel() * gradient.element_size()
    seen.add(memory.data_ptr())
    return gradient.clone() if shared else gradient


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Their sum, in the memory of one of them."""
    if total is None or more is None:
        return more if total is None else total
    return more.add_(total) if total.is_sparse and not more.is_sparse else total.add_(more)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether `model` has dropout anywhere (an adapter's; `load_policy` turns off the model's own)."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
