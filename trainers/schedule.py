"""What steps and how far: the optimiser that is named, and the learning rate of a step.

The rate is a pure function of the step, so there is no state to save.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from quintain.config import TrainerConfig
from quintain.failure import QuintainError


def learning_rate(config: TrainerConfig, step: int) -> float:
    """The rate of optimiser step `step` (0, 1, ...), with a linear warm-up from zero: transformers' own schedules.

    QuintainError where `lr_scheduler_kwargs` does not fit.
    """
    from transformers import get_scheduler

    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    try:
        schedule = get_scheduler(
            name, optimizer, config.warmup_steps, config.max_steps, scheduler_specific_kwargs=config.lr_scheduler_kwargs
        )
    except (TypeError, ValueError) as error:
        raise QuintainError(f"trainer.lr_scheduler_kwargs: {str(error).splitlines()[0]}") from None
    factor: float = schedule.lr_lambdas[0](step)
    return config.learning_rate * factor


def optimizer_of(config: TrainerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that `config` names. QuintainError where it needs a package that is not installed."""
    lr, decay = config.learning_rate, config.weight_decay
    betas, epsilon = (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    if config.optim == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay)
    if config.optim == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=decay)
    if config.optim == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise QuintainError("trainer.optim: adamw_8bit needs bitsandbytes: install it, or use adamw") from None
        quantised: torch.optim.Optimizer = AdamW8bit(parameters, lr=lr, betas=betas, eps=epsilon, weight_decay=decay)
        return quantised
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, betas=betas, eps=epsilon, fused=True)
