"""The policy: loading it, its reference, what is published and saved of it, and the proof that what is saved is it.

Invariants:
- what `published` yields are the weights the engine must sample with, under the names that transformers saves the
  plain model under: adapters are merged into copies, tied weights appear once, experts that are fused in memory are
  split, and the trained parameters are never touched;
- in training the policy draws no random numbers but for an adapter's own dropout: what is trained is what samples.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quintain.config import LoraConfig, ModelConfig
from quintain.failure import QuintainError
from quintain.rollout.engines.dtypes import DTYPES
from quintain.trainers.ranks import placed, whole

AUTO = {
    "lm": "AutoModelForCausalLM",
    "score": "AutoModelForSequenceClassification",
    "steps": "AutoModelForTokenClassification",
}
"""The class of transformers that a model of each kind is loaded by."""
VALUE_HEAD = "value_head"
"""The attribute of a critic's head on the policy's trunk, which is not published, and saved in a file of its own."""
ADAPTER = "adapter"
"""The folder, beside a saved policy's own files, of the adapter that is merged into them."""


def load_policy(
    config: ModelConfig, *, seed: int, head: Literal["lm", "score", "steps"] = "lm"
) -> tuple[nn.Module, list[str]]:
    """The trainable model of `config`, in a PEFT adapter where one is asked for, and what to tell about it.

    With another head than "lm" it is a classifier: of a whole text (score), or of its tokens (steps).

    QuintainError where there is no such model, or where the adapter could not be merged into it.
    """
    import transformers
    from transformers import AutoConfig, set_seed

    set_seed(seed)
    try:
        settings = AutoConfig.from_pretrained(config.path)
        chances = _without_chances(settings)
        if head != "lm":
            settings.num_labels = 1 if head == "score" else 2
            settings.classifier_dropout = 0.0
        # transformers takes SDPA where the model has it, and eager attention where it has not.
        auto = getattr(transformers, AUTO[head])
        model: Any = auto.from_pretrained(config.path, config=settings, dtype=DTYPES[config.dtype])
    except (OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise QuintainError(f"model.path: cannot load an {AUTO[head]} from '{config.path}': {detail}") from None
    _check_without_chance(model)
    notes = []
    if chances:
        off = ", ".join(f"{name} {value:g}" for name, value in chances.items())
        notes.append(f"the model's own {off}: off, so that what is trained is what samples")
    if model.config._attn_implementation == "eager":
        notes.append(f"attention: eager, because {type(model).__name__} has no SDPA")
    if config.lora is not None:
        model = _adapted(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora is not None:
            model.enable_input_require_grads()
    return model, notes


def _without_chances(settings: Any) -> dict[str, float]:
    """Set to zero what makes a model another function in training than in sampling; what there was, by name."""
    from transformers import PreTrainedConfig

    found: dict[str, float] = {}
    for name, value in list(vars(settings).items()):
        if isinstance(value, PreTrainedConfig):
            found |= _without_chances(value)
        elif ("drop" in name or "jitter" in name) and isinstance(value, float) and value > 0:
            setattr(settings, name, 0.0)
            found[name] = value
    return found


def _check_without_chance(model: Any) -> None:
    """QuintainError where `model`, in training, still is another function than it is in sampling."""
    ids = torch.arange(8)[None] * 7919 % model.config.get_text_config().vocab_size
    with torch.no_grad():
        training, sampling = (model.train(mode)(input_ids=ids, use_cache=False).logits for mode in (True, False))
    if not torch.allclose(training, sampling, rtol=1e-3, atol=1e-4):
        raise QuintainError(
            f"model.path: {type(model).__name__} draws random numbers in training that its configuration does not "
            "name, so it cannot be trained on what it samples: use another model"
        )


def _adapted(model: nn.Module, lora: LoraConfig) -> nn.Module:
    import peft

    if lora.path is not None:
        return _loaded_adapter(model, lora, lora.path)
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
    _check_mergeable(adapted, lora)
    return adapted


def _loaded_adapter(model: nn.Module, lora: LoraConfig, folder: str) -> nn.Module:
    """`model` in the adapter of `folder`. QuintainError where there is none, or none that can be merged as ours are."""
    import peft

    try:
        options: Any = peft.PeftConfig.from_pretrained(folder)
        plain = isinstance(options, peft.LoraConfig) and not options.use_dora and options.bias == "none"
        if not plain or options.modules_to_save:
            raise ValueError("it is more than a plain LoRA (no DoRA, biases or modules trained in full)")
        options.lora_dropout = lora.dropout
        adapted: nn.Module = peft.PeftModel.from_pretrained(model, folder, config=options, is_trainable=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise QuintainError(f"model.lora.path: cannot go on from '{folder}': {reason}") from None
    _check_mergeable(adapted, lora)
    return adapted


def _check_mergeable(model: Any, lora: LoraConfig) -> None:
    """QuintainError unless every adapted layer is a linear layer or an embedding with a weight of its own.

    Adding the adapter's product to that weight is then the same function; of anything else it is not known to be.
    """
    from peft.tuners.lora import Embedding, Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    users = Counter(value.data_ptr() for value in base.state_dict().values())
    problems, good = [], set()
    for name, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        inner: Any = layer.get_base_layer()
        if type(layer) not in (Linear, Embedding):
            problems.append(f"{name}, a {type(inner).__name__}, which an adapter cannot be merged into")
        elif users[inner.weight.data_ptr()] > 1:
            problems.append(f"{name}, whose weight another layer shares (it is tied)")
        else:
            good.add(name.rpartition(".")[2])
    if problems:
        raise QuintainError(
            f"model.lora.target_modules: {lora.target_modules!r} reaches {problems[0]}: name layers that can be merged"
            f" ({', '.join(sorted(good)) or 'it reaches none'})"
        )


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is a PEFT model."""
    return hasattr(model, "disable_adapter")


def add_value_head(model: Any) -> None:
    """Put a critic's head that says 0 on the policy's trunk."""
    base = _base(model)
    head = nn.Linear(base.config.get_text_config().hidden_size, 1, bias=False, dtype=base.dtype, device=base.device)
    nn.init.zeros_(head.weight)
    setattr(base, VALUE_HEAD, head)


class ReferenceModel:
    """The policy before training: the model with its adapter off, or, where there is none or it is to stand `apart`
    (it follows, or the adapter was trained before), a frozen copy, which shares what is not trained."""

    def __init__(self, model: nn.Module, *, apart: bool) -> None:
        self._model = model
        self.frozen: nn.Module | None = None
        if apart or not is_adapted(model):
            shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
            self.frozen = copy.deepcopy(model, shared).eval().requires_grad_(False)

    def follow(self, share: float) -> None:
        """Move the copy towards the policy: `share` of it is the policy's afterwards (TR-DPO, arXiv 2404.09656)."""
        assert self.frozen is not None
        with torch.no_grad():
            for mine, theirs in zip(self.frozen.parameters(), self._model.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.dtype), share)

    def in_place(self) -> AbstractContextManager[Any]:
        """While it lasts, the policy itself is the reference, where there is no copy."""
        if self.frozen is not None:
            return nullcontext()
        off: AbstractContextManager[Any] = self._model.disable_adapter()  # type: ignore[operator]
        return off


def published(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights to sample with, by the names of a saved plain model. Most are the parameters themselves.

    Of a sharded model every rank asks for them, and rank 0 alone gets them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights = _merged(model)
    if not _follows():
        yield from revert_weight_conversion(_base(model), weights).items()


def _follows() -> bool:
    return dist.is_initialized() and dist.get_rank() > 0


def _base(model: Any) -> Any:
    return model.get_base_model() if is_adapted(model) else model


@torch.no_grad()
def _merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain model, by its own names in memory; of those that are tied, the one that is saved."""
    base = _base(model)
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    apart = ("lora_", VALUE_HEAD)
    named = {
        name: value
        for name, value in base.state_dict(keep_vars=True).items()
        if not any(each in name for each in apart)
    }
    tied = set(getattr(base, "_tied_weights_keys", None) or ())
    shared = {id(value) for name, value in named.items() if name not in tied}
    merged = {}
    for name, value in named.items():
        if name in tied and id(value) in shared:
            continue
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner.removesuffix(".base_layer"))
        if layer is not None and leaf == "weight":
            value = value.float()
            for adapter in layer.active_adapters:
                value = value + layer.get_delta_weight(adapter).float()
        merged[name.replace(".base_layer.", ".")] = whole(value)
    return merged


@dataclass(frozen=True, slots=True)
class Saved:
    """What is saved of a model: its weights with adapters merged, the adapter's own, none without one, and the weight
    of a critic's head on it, None without one."""

    weights: dict[str, Tensor]
    adapter: dict[str, Tensor]
    value_head: Tensor | None


def to_save(model: nn.Module) -> Saved:
    """The weights by the plain model's names in memory, each in the type that the model has it in.

    Of a sharded model every rank asks for them, and rank 0 alone gets them.
    """
    types = {name.replace(".base_layer.", "."): value.dtype for name, value in _base(model).state_dict().items()}
    weights = {name: value.to("cpu", types[name]).contiguous() for name, value in _merged(model).items()}
    adapter = {name: whole(value) for name, value in model.state_dict().items() if "lora_" in name}
    head = getattr(_base(model), VALUE_HEAD, None)
    return Saved(weights, adapter, None if head is None else whole(head.weight.detach()))


def save_policy(model: Any, tokenizer: Any, folder: Path, saved: Saved | None = None) -> None:
    """Write a folder that transformers loads: the whole model, with adapters merged, and the tokenizer.

    An adapter is in the folder `ADAPTER` besides, which PEFT loads. `saved` is what `to_save` gave.
    """
    saved = saved or to_save(model)
    _base(model).save_pretrained(folder, state_dict=saved.weights)
    tokenizer.save_pretrained(folder)
    if is_adapted(model):
        model.save_pretrained(folder / ADAPTER, state_dict=saved.adapter, save_embedding_layers=False)
    if saved.value_head is not None:
        save_file({"weight": saved.value_head.contiguous()}, folder / f"{VALUE_HEAD}.safetensors")


def check_saved(model: nn.Module, folder: Path, saved: Saved | None = None) -> None:
    """Prove that `folder` loads back as the very weights of `model`. QuintainError where it does not."""
    found = _loaded(folder, _base(model))
    for name, value in (saved or to_save(model)).weights.items():
        if name not in found or not torch.equal(found[name].cpu(), value):
            raise QuintainError(f"{type(_base(model)).__name__} does not load back as it was saved: {name} differs")


def restore_policy(model: Any, folder: Path) -> None:
    """Put the weights that `save_policy` wrote into `folder` back in place: the adapter's, or the whole model's.

    OSError, ValueError or RuntimeError where the folder has not what the model needs.
    """
    if is_adapted(model):
        import peft

        found = load_file(folder / ADAPTER / peft.utils.SAFETENSORS_WEIGHTS_NAME)
        named = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        found, named = _loaded(folder, model), {n: v for n, v in model.state_dict().items() if VALUE_HEAD not in n}
    if (head := getattr(_base(model), VALUE_HEAD, None)) is not None:
        named[VALUE_HEAD] = head.weight
        found[VALUE_HEAD] = load_file(folder / f"{VALUE_HEAD}.safetensors")["weight"]
    missing = set(named) - set(found)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {min(missing)}")
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(placed(found[name], value))


def _loaded(folder: Path, like: Any) -> dict[str, Tensor]:
    """Weights in `folder`, read into a model `like` it, by their names in memory; ValueError where any is missing."""
    fresh, told = type(like).from_pretrained(folder, dtype=like.dtype, local_files_only=True, output_loading_info=True)
    missing = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in told[kind])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing or of another shape, such as {missing[0]}")
    weights: dict[str, Tensor] = fresh.state_dict()
    return weights
