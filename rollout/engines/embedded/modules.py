"""Any transformers causal language model with a plain attention cache, decoded in slots through its own modules.

Slower than `LlamaNetwork`, and general: attention is whatever the model does with a 4-D additive mask and a `Cache`.

Invariant: models whose caches are not plain (recurrent states, windows shorter than the sequence) are refused when
they are opened, never decoded wrongly.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from quintain.failure import QuintainError, one_line
from quintain.rollout.engines.contract import steady_length
from quintain.rollout.engines.embedded.kv import KVCache
from quintain.rollout.engines.embedded.network import Layout, Prefilled, flat_pairs, target_logprobs


def read_model(path: str | Path) -> Any:
    """The model in the folder `path`, or of that name on a hub or in its cache, in the type its file holds."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise QuintainError(
            f"no model at {path}: expected a folder with config.json and model.safetensors; "
            "scripts/get_smollm2.py makes one"
        )
    try:
        with _without_bars():
            return AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise QuintainError(f"model.path: no model at {path}: {one_line(str(error), 300)}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' progress bars: they would go to a server's log."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def longest(model: PreTrainedModel, wanted: int | None) -> int:
    """The longest sequence the engine may hold; raises QuintainError where the model's cache is not plain."""
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    own = getattr(config, "max_position_embeddings", None)
    length = wanted or own
    if length is None:
        raise QuintainError(f"{name} does not say how long its context is: set max_length")
    if own is not None and length > own:
        raise QuintainError(f"max_length is {length}, but {name} has positions for {own} tokens only: lower it")
    steady = steady_length(model.config)
    if steady is not None and length > steady:
        raise QuintainError(
            f"beyond {steady} tokens the positions of {name} depend on the longest row of a batch, so a row would be "
            f"sampled with other numbers than it is trained on: set max_length to at most {steady} (it is {length})"
        )
    advice = "use the vLLM engine for this model"
    if model.config.is_encoder_decoder:
        raise QuintainError(f"{name} has an encoder, and the embedded engine runs decoders only: {advice}")
    if getattr(model, "_is_stateful", False):
        raise QuintainError(f"{name} keeps a recurrent state, which the embedded engine cannot hold: {advice}")
    for index, layer in enumerate(DynamicCache(config=model.config).layers):
        window = layer.sliding_window if type(layer) is DynamicSlidingWindowLayer else None
        if window is not None and window < length:
            raise QuintainError(
                f"layer {index} of {name} sees only the last {window} tokens, and the embedded engine holds whole "
                f"sequences: set max_length to at most {window} (it is {length}), or {advice}"
            )
        if window is None and type(layer) is not DynamicLayer:
            raise QuintainError(
                f"layer {index} of {name} keeps a {type(layer).__name__}, and the embedded engine holds plain keys "
                f"and values only: {advice}"
            )
    return length


class ModuleNetwork:
    """Runs `model`, which it converts to `dtype` and takes over."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model = _cast(model, dtype)
        self.words, self.layout = int(model.get_input_embeddings().weight.shape[0]), layout_of(model)
        self._layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._separable = _head_is_separable(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def prefill(self, ids: Tensor, lengths: Sequence[int]) -> Prefilled:
        """Read the prompts `ids` [n, S] of `lengths`."""
        layers = [_Collect() for _ in range(self._layers)]
        ends = sorted({length - 1 for length in lengths})
        options = {"logits_to_keep": torch.tensor(ends)} if self._keeps_logits else {}
        logits = self._run(ids, Cache(layers=[*layers]), use_cache=True, **options).logits
        at = torch.tensor([ends.index(length - 1) if options else length - 1 for length in lengths])
        return Prefilled(logits[torch.arange(len(lengths)), at], [x.k for x in layers], [x.v for x in layers])

    def step(self, ids: Tensor, slots: KVCache) -> Tensor:
        """Read one more token `ids` [B] in each of the padded rows of `slots`; the logits after it [B, V]."""
        mask = slots.begin_step()
        layers: list[CacheLayerMixin] = [_InSlots(slots, index) for index in range(self._layers)]
        logits: Tensor = self._model(
            input_ids=ids[:, None],
            position_ids=torch.tensor(slots.positions())[:, None],
            attention_mask=mask,
            past_key_values=Cache(layers=[*layers]),
            use_cache=True,
        ).logits
        slots.end_step()
        return logits[:, -1]

    def score(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Log-probabilities of the tokens of each row of `ids` [n, S] given those before it: [length - 1] each."""
        at, targets = flat_pairs(ids, lengths)
        if self._separable:
            hidden = self._run(ids, None, model=self._model.base_model, use_cache=False).last_hidden_state
            head = self._model.get_output_embeddings()
        else:
            hidden, head = self._run(ids, None, use_cache=False).logits, torch.nn.Identity()
        flat = target_logprobs(hidden.flatten(0, 1)[at], targets, head)
        return list(flat.split([max(length - 1, 0) for length in lengths]))

    def build(self, tensors: Mapping[str, Tensor]) -> Any:
        """Prepare `tensors` in this network's type, without touching the weights in use."""
        state = self._model.state_dict()
        if tensors.keys() == state.keys():
            return {name: tensor.to(state[name].dtype, copy=True) for name, tensor in tensors.items()}
        with _without_bars():  # experts, say, are fused in memory: transformers knows how
            fresh = type(self._model).from_pretrained(None, config=self._model.config, state_dict=dict(tensors))
        return {name: tensor.to(state[name].dtype) for name, tensor in fresh.state_dict().items()}

    def use(self, built: Any) -> None:
        """Copy what `build` prepared into the parameters."""
        state = self._model.state_dict()
        for name, tensor in built.items():
            state[name].copy_(tensor)

    def _run(self, ids: Tensor, cache: Cache | None, *, model: Any = None, **options: Any) -> Any:
        positions = torch.arange(ids.shape[1])
        mask = torch.zeros(ids.shape[1], ids.shape[1], dtype=self._model.dtype)
        mask.masked_fill_(positions[None, :] > positions[:, None], -torch.inf)
        return (model or self._model)(
            input_ids=ids,
            position_ids=positions.expand(ids.shape),
            attention_mask=mask.expand(len(ids), 1, -1, -1),
            past_key_values=cache,
            **options,
        )


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """`model` with its weights in `dtype`. Not `model.to`, which would round the frequencies of its positions too."""
    saved = set(model.state_dict())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in saved and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def layout_of(model: PreTrainedModel) -> Layout:
    """The names and shapes that `model` is saved under, and which of them share a tensor."""
    one_each: dict[tuple[int, torch.Size], Tensor] = {}  # a tensor without memory for each that the model has
    saved: dict[str, Tensor] = revert_weight_conversion(
        model,
        {
            name: one_each.setdefault((tensor.data_ptr(), tensor.shape), tensor.to("meta"))
            for name, tensor in model.state_dict().items()
        },
    )
    owner: dict[int, str] = {}
    tied: dict[str, str] = {}
    tied_names = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name in sorted(saved, key=lambda name: (name in tied_names, name)):
        first = owner.setdefault(id(saved[name]), name)
        if first != name and saved[name].numel():
            tied[name] = first
    return Layout({name: tuple(tensor.shape) for name, tensor in saved.items()}, tied)


def _head_is_separable(model: PreTrainedModel) -> bool:
    """Whether the logits are the output embedding of the last hidden state and nothing else (no scale, no cap)."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    ids = torch.arange(3)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return bool(torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits))


class _Layer(CacheLayerMixin):
    """What transformers asks of a cache layer and our callers answer themselves, by passing masks and positions."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _Collect(_Layer):
    """Keeps the keys and values [n, H, S, D] of one prefill."""

    k: Tensor
    v: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.k, self.v = key_states, value_states
        return key_states, value_states


class _InSlots(_Layer):
    """Writes one decode step's keys and values into the slots."""

    def __init__(self, slots: KVCache, index: int) -> None:
        super().__init__()
        self._slots, self._index = slots, index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._slots.write(self._index, key_states[:, :, 0], value_states[:, :, 0])
