"""TRL 1.16's own code as an oracle: its `GRPOTrainer` methods on a stand-in that carries only what they read.

Nothing of TRL is copied or re-implemented here. `score` runs its `_generate_and_score_completions`
(advantages, sampler ratios, masks, counts) with generation, rewards and log-probabilities replaced by given
tensors; `loss` runs its `_compute_loss` on what comes out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from .loss_batches import Batch

EOS, PAD, WORD = 1, 0, 5

DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GRPOConfig) if f.default is not MISSING}
"""TRL's option names and their defaults."""
RLOO_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(RLOOConfig) if f.default is not MISSING}


class Accelerator:
    """One process."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value

    def pad_across_processes(self, value: Tensor, dim: int, pad_index: float) -> Tensor:
        return value


def _stand_in(logps: Callable[[], tuple[Tensor, Tensor | None, None]], options: dict[str, Any]) -> Any:
    args = SimpleNamespace(**(DEFAULTS | {"steps_per_generation": 1, "per_device_train_batch_size": 8} | options))
    read = {name: getattr(args, name) for name in DEFAULTS}
    del read["epsilon"]
    trainer = SimpleNamespace(
        **(
            read
            | {
                "args": args,
                "accelerator": Accelerator(),
                "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
                "epsilon_low": args.epsilon,
                "epsilon_high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
                "aux_loss_enabled": False,
                "_entropy_bonus_enabled": False,
                "current_gradient_accumulation_steps": args.gradient_accumulation_steps,
                "_metrics": {"train": defaultdict(list)},
                "_logs": defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
                "_pending_extra_logs": defaultdict(list),
                "_pending_metrics": defaultdict(list),
            }
        )
    )
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: logps()
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    trainer.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
    trainer.get_gamma_weights = GRPOTrainer.get_gamma_weights
    return trainer


def score(batch: Batch, **options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """TRL's training inputs (advantages, importance_sampling_ratio, completion_mask, ...) and its metrics."""
    count = len(batch.lengths)
    use_vllm = batch.sampler_logp is not None
    answers = iter([batch.old_logp] * use_vllm + [batch.ref_logp])
    trainer = _stand_in(
        lambda: (next(answers), None, None),
        {"vllm_importance_sampling_correction": use_vllm, "num_iterations": 1} | options,
    )
    components = batch.rewards.shape[1]
    weights = trainer.reward_weights
    stubs = {
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "_is_vlm": False,
        "_image_pad_token_id": None,
        "_video_pad_token_id": None,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=PAD),
        "eos_token_ids": [EOS],
        "chat_template_kwargs": {},
        "use_vllm": use_vllm,
        "num_generations": batch.group_size,
        "ref_model": object(),
        "reward_funcs": [None] * components,
        "reward_func_names": [f"r{k}" for k in range(components)],
        "reward_weights": torch.ones(components) if weights is None else torch.tensor(weights),
    }
    vars(trainer).update(stubs)
    ids = [
        [WORD] * (length - 1) + [WORD if cut else EOS]
        for length, cut in zip(batch.lengths, batch.truncated, strict=True)
    ]
    tool_masks = [mask[:length].int().tolist() for mask, length in zip(batch.tool_mask, batch.lengths, strict=True)]
    sampled = None
    if batch.sampler_logp is not None:
        rows = zip(batch.sampler_logp, batch.lengths, strict=True)
        sampled = [[None if v != v else v for v in row[:length].tolist()] for row, length in rows]
    generated = ([[7, 8]] * count, ids, tool_masks, ["text"] * count, sampled, {}, None, None)
    trainer._generate = lambda _prompts: generated
    trainer._calculate_rewards = lambda *_: batch.rewards.clone()
    inputs = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "question"}] * count)
    if batch.old_logp is not None:
        inputs["old_per_token_logps"] = batch.old_logp
    return inputs, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def loss(
    batch: Batch,
    inputs: dict[str, Any],
    *,
    trainer_class: Any = GRPOTrainer,
    state: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """TRL's loss, its gradient with respect to `logp` [B, L], and its metrics. `state`: more attributes, kept."""
    logp = batch.logp.clone().requires_grad_()
    use_vllm = "importance_sampling_ratio" in inputs
    trainer = _stand_in(
        lambda: (logp, batch.entropy, None),
        {
            "use_vllm": use_vllm,
            "vllm_importance_sampling_correction": use_vllm,
            "gradient_accumulation_steps": 1,
        }
        | options,
    )
    vars(trainer).update(state or {})
    value = trainer_class._compute_loss(trainer, trainer.model, inputs)
    value.backward()
    for name in state or ():
        state[name] = getattr(trainer, name)  # type: ignore[index]
    assert logp.grad is not None
    return value.detach(), logp.grad, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def score_rloo(batch: Batch, **options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """TRL's RLOO inputs (advantages, old_logps, ...) and its metrics: old log-probabilities are those of `batch`."""
    assert batch.old_logp is not None
    answers = iter([batch.old_logp, batch.ref_logp])
    trainer = _stand_in(lambda: (next(answers), None, None), {})
    weights = options.get("reward_weights")
    components = batch.rewards.shape[1]
    vars(trainer).update(RLOO_DEFAULTS | options)
    vars(trainer).update(
        pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=PAD),
        eos_token_ids=[EOS],
        num_generations=batch.group_size,
        ref_model=object(),
        reward_func_names=[f"r{k}" for k in range(components)],
        reward_weights=torch.ones(components) if weights is None else torch.tensor(weights),
    )
    ids = [
        [WORD] * (length - 1) + [WORD if cut else EOS]
        for length, cut in zip(batch.lengths, batch.truncated, strict=True)
    ]
    trainer._generate = lambda _prompts: ([[7, 8]] * len(ids), ids, ["text"] * len(ids))
    trainer._calculate_rewards = lambda *_: batch.rewards.clone()
    inputs = RLOOTrainer._generate_and_score_completions(trainer, [{"prompt": "question"}] * len(ids))
    return inputs, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def loss_rloo(batch: Batch, inputs: dict[str, Any], *, epsilon: float, epsilon_high: float) -> tuple[Tensor, Tensor]:
    """TRL's RLOO loss and its gradient with respect to `logp` [B, L]."""
    logp = batch.logp.clone().requires_grad_()
    trainer = _stand_in(lambda: (logp, batch.entropy, None), {})
    vars(trainer).update(epsilon_low=epsilon, epsilon_high=epsilon_high)
    value = RLOOTrainer._compute_loss(trainer, trainer.model, inputs)
    value.backward()
    assert logp.grad is not None
    return value.detach(), logp.grad
