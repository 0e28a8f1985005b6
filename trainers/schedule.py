"""The learning rate of a step: a pure function of the step, so there is no state to save."""

from __future__ import annotations

import math

from quintain.config import TrainerConfig


def learning_rate(config: TrainerConfig, step: int) -> float:
    """The rate of optimiser step `step` (0, 1, ...), with a linear warm-up from zero, as in transformers."""
    if step < config.warmup_steps:
        return config.learning_rate * step / max(1, config.warmup_steps)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * max(0.0, 1.0 - done)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
