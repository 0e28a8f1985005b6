"""What runs the model: the few things a decoder needs from a network, and how to open one.

Two networks do it. `LlamaNetwork` (llama.py) computes the Llama family in a third of the operations that its modules
take; `ModuleNetwork` (modules.py) runs any transformers causal language model whose attention keeps a plain cache.

Invariants:
- a network is used only after it has been checked against the model's own forward pass on a few tokens;
- new weights are built beside the old ones and swapped in whole: a mistake in them leaves the old ones in place.

Shapes: n prompts padded on the right to S tokens, B rows of a decode step, V words, H key/value heads of size D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quintain.failure import QuintainError
from quintain.rollout.engines.dtypes import torch_dtype
from quintain.rollout.engines.embedded.kv import KVCache
from quintain.rollout.weights.canary import TOLERANCE

_SCORED_POSITIONS = 512  # at once through the head: V float32 numbers each
_PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that have been read: logits after each one's last token [n, V]; keys, values [n, H, S, D] by layer."""

    logits: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """What weights a network takes: every name with its shape, and the names that share another's tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]  # may be left out of a file


class Network(Protocol):
    """A causal language model that can be decoded in slots."""

    @property
    def words(self) -> int:
        """The size of the vocabulary V."""

    @property
    def layout(self) -> Layout:
        """What new weights must look like."""

    def prefill(self, ids: Tensor, lengths: Sequence[int]) -> Prefilled:
        """Read the prompts `ids` [n, S] of `lengths`."""

    def step(self, ids: Tensor, slots: KVCache) -> Tensor:
        """Read one more token `ids` [B] in each of the padded rows of `slots`; the logits after it [B, V]."""

    def score(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Log-probabilities of the tokens of each row of `ids` [n, S] given those before it: [length - 1] each."""

    def build(self, tensors: Mapping[str, Tensor]) -> Any:
        """Prepare `tensors`, complete as `layout` says, without touching the weights in use."""

    def use(self, built: Any) -> None:
        """Swap in what `build` prepared."""


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A checked network, the longest sequence it may hold, and the bytes that one cached token takes."""

    network: Network
    max_length: int
    token_bytes: int


def device_of(name: str) -> torch.device:
    """Where `rollout.device` says to compute: `auto` is the GPU where there is one. QuintainError where there is none.

    Written against torch's documented interface and never run on a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise QuintainError("rollout.device: cuda is asked for, and torch sees no GPU here: set auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def placed(device: torch.device) -> AbstractContextManager[Any]:
    """Tensors that this thread makes in the block are on `device`. Free of cost on a CPU."""
    return nullcontext() if device.type == "cpu" else device


def open_network(model: Any, dtype: str, max_length: int | None, device: torch.device) -> LoadedNetwork:
    """The fastest network for `model`, which is a transformers model, a folder with one, or a hub's name of one.

    A model object may be taken over: converted to `dtype`, its weights changed by later loads. Raises QuintainError
    where the model is missing, keeps no plain cache, or decodes differently in slots than on its own.
    """
    from quintain.rollout.engines.embedded.llama import LlamaNetwork
    from quintain.rollout.engines.embedded.modules import ModuleNetwork, longest, read_model

    kind = torch_dtype(dtype, "rollout.dtype")
    loaded = read_model(model) if isinstance(model, (str, Path)) else model
    with torch.inference_mode(), placed(device):
        loaded.to(device).eval()
        length = longest(loaded, max_length)
        probe = torch.arange(_PROBE_TOKENS) * 7919 % loaded.config.get_text_config().vocab_size
        reference = loaded(input_ids=probe[None], use_cache=False).logits[0].float()
        makers: list[Callable[[Any, torch.dtype], Network]] = [ModuleNetwork]
        if LlamaNetwork.fits(loaded):
            makers.insert(0, LlamaNetwork)
        for make in makers:
            network = make(loaded, kind)
            error, token_bytes = _probe(network, probe, reference)
            if error <= TOLERANCE[dtype]:
                return LoadedNetwork(network, length, token_bytes)
    raise QuintainError(
        f"{type(loaded).__name__} decodes differently with its cache in slots than on its own, so the embedded engine "
        "cannot sample from it faithfully: use the vLLM engine for this model"
    )


def _probe(network: Network, probe: Tensor, reference: Tensor) -> tuple[float, int]:
    """How far two rows of different length, read and decoded in slots, are from the plain `reference` [S, V].

    Also the bytes that one token of theirs takes in the cache.
    """
    lengths = [_PROBE_TOKENS - 2, _PROBE_TOKENS - 5]
    read = network.prefill(torch.stack([probe[: lengths[0]]] * 2), lengths)
    slots = KVCache()
    slots.admit(read.keys, read.values, [0, 1], lengths)
    got = [read.logits]
    for ahead in range(2):
        got.append(network.step(probe[[length + ahead for length in lengths]], slots))
    wanted = torch.cat([reference[[length + ahead - 1 for length in lengths]] for ahead in range(3)])
    difference = (torch.cat(got).float() - wanted).pow(2).mean().sqrt()
    token_bytes = sum(part[0, :, 0].nbytes for part in (*read.keys, *read.values))
    return float(difference / wanted.std()), token_bytes


def target_logprobs(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities [N] float32 of `targets` [N] under `head` of `hidden` [N, E], a few positions at a time."""
    parts = []
    for start in range(0, len(targets), _SCORED_POSITIONS):
        logits = head(hidden[start : start + _SCORED_POSITIONS]).float()
        chosen = logits.gather(-1, targets[start : start + _SCORED_POSITIONS, None])[:, 0]
        parts.append(chosen - logits.logsumexp(-1))
    return torch.cat(parts) if parts else hidden.new_empty(0, dtype=torch.float32)


def flat_pairs(ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where the flattened rows of `ids` [n, S] predict a token, and which: (positions [N], targets [N])."""
    columns = torch.arange(ids.shape[1])
    real = columns[None, :] < torch.tensor(lengths)[:, None] - 1
    return real.flatten().nonzero()[:, 0], ids.roll(-1, 1)[real]
