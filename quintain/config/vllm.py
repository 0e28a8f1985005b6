"""The `rollout.vllm` section: which vLLM servers sample, how they are started, and how weights reach them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from quintain.config.section import MayChange, Positive, Seconds, Section, Url
from quintain.failure import QuintainError


class VLLMConfig(Section):
    """Replicas of a vLLM server: started and kept alive by the run, or running elsewhere (`urls`)."""

    replicas: MayChange[Positive | None] = None
    """How many servers the run starts; null is one, or one for each of `devices`."""
    urls: MayChange[list[Url]] = Field(default_factory=list)
    """Servers that run already, in place of starting any; they are neither stopped nor restarted."""
    api_key_env: MayChange[str | None] = None
    """The environment variable that holds what the servers at `urls` were given as --api-key."""
    python: MayChange[str | None] = None
    """The Python that has vLLM and quintain (the last line that scripts/setup_vllm.py prints); null is this one."""
    args: MayChange[list[str]] = Field(default_factory=list)
    """More flags of vLLM's server, as on its command line."""
    env: MayChange[dict[str, str]] = Field(default_factory=dict)
    """More environment variables of the servers."""
    devices: MayChange[list[str]] = Field(default_factory=list)
    """CUDA_VISIBLE_DEVICES of each replica, such as ["0,1", "2,3"]; empty leaves the choice to vLLM."""
    cpu_cache_gib: MayChange[Positive] = 1
    """Memory for keys and values of each replica on a CPU, in GiB; on GPUs see --gpu-memory-utilization in `args`."""
    kv: Literal["recompute", "keep"] = "recompute"
    """Keys and values of requests in flight when new weights come: recompute them under the new ones, so that every
    later token is exactly theirs, or keep the old ones, which is faster and slightly off-policy."""
    transfer: MayChange[Literal["folder", "nccl", "ipc"]] = "folder"
    """How weights come: from the published folder (shared memory or disk), or from the trainer's GPUs through vLLM's
    own engines, to servers at `urls` that were started with them (never tested)."""
    max_lora_rank: Positive | None = None
    """Accept PEFT adapters up to this rank as published weights; null accepts whole models only."""
    stream_interval: MayChange[Positive] = 16
    """Tokens that the servers gather before they send them: more costs less, and more are lost with a replica."""
    start_s: MayChange[Seconds] = 900.0
    """How long a server may take to come up."""
    hang_s: MayChange[Seconds] = 120.0
    """A replica with requests that gives no sign of life for so long is treated as dead."""

    @model_validator(mode="after")
    def _consistent(self) -> VLLMConfig:
        started = {"replicas": self.replicas, "python": self.python, "args": self.args, "devices": self.devices}
        given = [name for name, value in started.items() if value]
        if self.urls and given:
            raise ValueError(f"'{given[0]}' is for servers that the run starts, 'urls' for others: drop one of them")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("'urls' names a server twice")
        if self.devices and self.replicas not in (None, len(self.devices)):
            raise ValueError(f"'devices' has {len(self.devices)} entries for {self.replicas} replicas: give one each")
        if self.kv == "keep" and self.max_lora_rank is not None:
            raise ValueError(
                "'kv: keep' with 'max_lora_rank': vLLM cannot score beside requests in flight there; drop one"
            )
        if self.transfer != "folder" and not self.urls:
            raise ValueError(f"'transfer: {self.transfer}' is for servers at 'urls', started with that engine")
        if self.api_key_env and not self.urls:
            raise ValueError("'api_key_env' is of the servers at 'urls': those that the run starts have their own")
        return self

    def api_key(self, environ: Mapping[str, str]) -> str | None:
        """The key of the servers at `urls`, which `environ` holds. Raises QuintainError where it does not."""
        if self.api_key_env is None:
            return None
        if not environ.get(self.api_key_env):
            raise QuintainError(f"rollout.vllm.api_key_env: the variable {self.api_key_env} is not set")
        return environ[self.api_key_env]

    @property
    def count(self) -> int:
        """How many servers the run starts; 0 with `urls`."""
        return 0 if self.urls else self.replicas or len(self.devices) or 1
