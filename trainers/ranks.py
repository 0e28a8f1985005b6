"""Several processes that train one model: how they come together, how the model is spread, how they agree.

Rank 0 leads: it runs the loop, publishes, saves, evaluates and logs, and before it does what needs all of them it tells
the others, which follow. Invariants: every rank does the same collective calls in the same order; what is counted,
averaged or compared is of all ranks; a rank that is lost ends the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

WAIT = timedelta(days=7)
"""How long a rank waits for another: rank 0 samples and evaluates for hours. One that has died is noticed at once."""
LOOK_S = 0.05
"""How often a rank looks whether the others have come."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world` that train one model."""

    rank: int = 0
    world: int = 1

    @classmethod
    def joined(cls, rank: int, world: int, store: Path | None, *, check: Callable[[], None] = lambda: None) -> Ranks:
        """Meet the others at the file `store`, or where the launcher's variables say (`MASTER_ADDR`, `MASTER_PORT`).

        `check` is called while they are waited for at a file, and may raise.
        """
        if world == 1:
            return cls()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if store is None:
            dist.init_process_group(backend, timeout=WAIT)
            return cls(rank, world)
        file = dist.FileStore(str(store), world)  # type: ignore[attr-defined]
        file.set(f"rank {rank}", "here")
        for other in range(world):
            while not file.check([f"rank {other}"]):
                check()
                time.sleep(LOOK_S)
        dist.init_process_group(backend, store=file, rank=rank, world_size=world, timeout=WAIT)
        return cls(rank, world)

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T, bool]]:
        """(index, item, counts) of every `world`-th item, from `rank` on: as many for every rank; a repeat that fills
        up a rank's last round counts not."""
        rounds = -(-len(items) // self.world)
        indices = [turn * self.world + self.rank for turn in range(rounds)]
        return [(i, items[i], True) if i < len(items) else (i, items[0], False) for i in indices]

    def told(self, what: T | None) -> T:
        """What rank 0 says, on every rank; rank 0 gives it, the others wait for it."""
        box = [what]
        if self.several:
            dist.broadcast_object_list(box, src=0)
        said: Any = box[0]
        return said  # type: ignore[no-any-return]

    def gathered(self, mine: T) -> list[T]:
        """What every rank gives, by rank, on all of them."""
        if not self.several:
            return [mine]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, mine)
        return box

    def leave(self) -> None:
        """Part from the others. May be repeated."""
        if self.several and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()
"""One process."""


def alone(forward: Any) -> Any:
    """A forward pass that one rank may run without the others, but for a sharded one."""
    return getattr(forward, "module", forward)


def is_loss(error: Exception) -> bool:
    """Whether `error` is what a collective call says where another rank has ended."""
    text = str(error)
    told = isinstance(error, RuntimeError) and ("Connection closed by peer" in text or "Connection reset" in text)
    return isinstance(error, dist.DistError) or told


def shard(forward: nn.Module, blocks: Collection[str]) -> None:
    """Leave on this rank its share of every parameter of `forward`; modules of the classes `blocks` are put together
    one at a time when they run. Proven: a path on which nothing is sharded trains other weights on every rank."""
    from torch.distributed.fsdp import fully_shard

    for module in forward.modules():
        if type(module).__name__ in blocks:
            fully_shard(module)
    fully_shard(forward, reshard_after_forward=True)  # or, after a pass without a gradient, it would stay together
    plain = [name for name, parameter in forward.named_parameters() if not isinstance(parameter, DTensor)]
    assert not plain, f"not sharded: {plain[:3]}"


def whole(value: Tensor) -> Tensor:
    """A sharded tensor put together in the memory of rank 0's CPU (empty on others, which have to ask as well); any
    other tensor as it is."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0, device="cpu")


def number(value: Tensor | float) -> float:
    """A number that may be spread over the ranks, all of which have to ask."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def mine(value: Tensor) -> Tensor:
    """This rank's shard of a tensor; a tensor that is not sharded as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every rank has, where `like` is, and sharded as it is."""
    there = value.to(like.device)
    if not isinstance(like, DTensor):
        return there
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
