"""What the replicas must hold: the base weights in force, the adapter over them, and what the servers call them.

An adapter's name is its version's and never used again: requests in flight keep the adapter they began with, so a name
says which tokens are whose. Labels carry a tag of this engine's own, so that weights of an earlier run in a server that
runs elsewhere are never taken for ours.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Weights
from quintain.rollout.engines.vllm.gpu import POLL_S, direct_label
from quintain.rollout.engines.vllm.replica import Replica, ReplicaDown

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Holdings:
    """`version` is in force: of the last of `base` and `adapter` that came. None: what the servers began with, 0."""

    version: int = 0
    base: Weights | None = None
    adapter: Weights | None = None
    adapters: bool = False  # whether the servers take any
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    direct: bool = False  # the trainer sends the base weights itself (`gpu`): they are waited for, never read
    patience_s: float = 120.0

    @property
    def label(self) -> str:
        """What the servers call the base weights."""
        return f"{self.tag}-{0 if self.base is None else self.base.version}"

    @property
    def adapter_name(self) -> str | None:
        """The model that requests ask for, None for the base."""
        return None if self.adapter is None else self._name(self.adapter)

    @property
    def salt(self) -> str:
        """Cached prefixes are shared among requests of one version only."""
        return f"{self.tag}-{self.version}"

    def version_of(self, label: str) -> int | None:
        """The version that a server means by `label`, None where it is no label of ours."""
        tag, _, version = label.rpartition("-")
        return int(version) if tag == self.tag and version.isdecimal() else None

    def with_weights(self, weights: Weights) -> Holdings:
        """The same after `weights` have come: an adapter lies over the base, a new base comes without one."""
        if is_adapter(weights):
            return replace(self, version=weights.version, adapter=weights)
        return replace(self, version=weights.version, base=weights, adapter=None)

    async def check(self, replica: Replica, weights: Weights) -> None:
        """FailureError where `replica` would refuse `weights`. Changes nothing."""
        if not is_adapter(weights):
            if not self.direct:
                await replica.check(_path(weights))
        elif not self.adapters:
            message = (
                f"{weights.path} is an adapter and the servers take none: set rollout.vllm.max_lora_rank (servers at"
                " 'urls' need --enable-lora)"
            )
            raise FailureError.of(FailureKind.REJECTED, Stage.PUBLISH, message)

    async def bring(self, replica: Replica, weights: Weights) -> None:
        """Load `weights`, the newest of these holdings, into a replica that has those before."""
        if is_adapter(weights):
            await replica.load_adapter(self._name(weights), _path(weights))
        elif self.direct:
            await self._await_sent(replica, weights.version)
        else:
            await replica.load(_path(weights), self.label)

    async def tidy(self, replica: Replica) -> None:
        """Have `replica` forget adapters that nobody asks for any more."""
        for name in await replica.adapters():
            if name.startswith(f"{self.tag}-") and name != self.adapter_name:
                await replica.unload_adapter(name)

    async def catch_up(self, replica: Replica, *, fresh: bool) -> None:
        """Bring everything that is in force to `replica`; `fresh`: it was started anew and has nothing of it."""
        if fresh or await replica.label() != self.label:
            if self.base is None:
                await replica.set_label(self.label)
            elif self.direct:
                raise ReplicaDown(f"only the trainer could send it version {self.base.version} again")
            else:
                await replica.load(_path(self.base), self.label)
        if self.adapter is not None and self._name(self.adapter) not in await replica.adapters():
            await replica.load_adapter(self._name(self.adapter), _path(self.adapter))

    async def _await_sent(self, replica: Replica, version: int) -> None:
        deadline = time.monotonic() + self.patience_s
        while await replica.label() != direct_label(version):
            if time.monotonic() > deadline:
                raise ReplicaDown(f"the trainer did not send it version {version} within {self.patience_s:.0f} s")
            await asyncio.sleep(POLL_S)
        await replica.set_label(self.label)

    def _name(self, adapter: Weights) -> str:
        return f"{self.tag}-v{adapter.version}"


def is_adapter(weights: Weights) -> bool:
    """Whether `weights` is a PEFT adapter's folder."""
    return (Path(weights.path) / ADAPTER).is_file()


def _path(weights: Weights) -> str:
    """The folder, as a server started anywhere must be told it."""
    return str(Path(weights.path).absolute())
