"""The policy: loading it, its reference, and what is published of it.

Invariant: what `published` yields are the weights the engine must sample with, under the names of the plain model:
adapters are merged into copies, tied weights appear once, and the trained parameters are never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quintain.config import LoraConfig, ModelConfig
from quintain.failure import QuintainError
from quintain.rollout.engines.dtypes import DTYPES


def load_policy(config: ModelConfig, *, seed: int) -> nn.Module:
    """The trainable model of `config`: a transformers causal LM, in a PEFT adapter where one is asked for."""
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            config.path, dtype=DTYPES[config.dtype], attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise QuintainError(f"model.path: cannot load a causal language model from '{config.path}': {detail}") from None
    if config.lora is not None:
        model = _adapted(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        if config.lora is not None:
            model.enable_input_require_grads()  # type: ignore[operator]
    return model


def _adapted(model: nn.Module, lora: LoraConfig) -> nn.Module:
    import peft

    options = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted: nn.Module = peft.get_peft_model(model, options)
    except ValueError as error:
        raise QuintainError(f"model.lora.target_modules: {str(error).splitlines()[0]}") from None
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is a PEFT model."""
    return hasattr(model, "disable_adapter")


class ReferenceModel:
    """The policy before training: the model with its adapter off, or a frozen copy."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copy: nn.Module | None = None
        if not is_adapted(model):
            self._copy = copy.deepcopy(model).eval().requires_grad_(False)

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """The reference model, for as long as the block lasts."""
        if self._copy is not None:
            yield self._copy
        else:
            off: Any = self._model.disable_adapter()  # type: ignore[operator]
            with off:
                yield self._model


def published(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights to sample with, by the plain model's names. Without an adapter they are the parameters themselves."""
    base: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    named = {name: value.detach() for name, value in base.state_dict().items() if "lora_" not in name}
    tied = set(getattr(base, "_tied_weights_keys", None) or ())
    shared = {value.data_ptr() for name, value in named.items() if name not in tied}
    for name, value in named.items():
        if name in tied and value.data_ptr() in shared:
            continue
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner.removesuffix(".base_layer"))
        if layer is not None and leaf == "weight":
            value = value.float()
            for adapter in layer.active_adapters:
                value = value + layer.get_delta_weight(adapter).detach().float()
        yield name.replace(".base_layer.", "."), value


def save_policy(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers loads: the whole model, with adapters merged, and the tokenizer."""
    base: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    dtype = next(base.parameters()).dtype
    state = {name: value.to("cpu", dtype).contiguous() for name, value in published(model)}
    base.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
