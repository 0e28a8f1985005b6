"""What steps and how far: the optimiser that is named, and the learning rate of a step.

The rate is a pure function of the step, so there is no state to save.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quintain.config import TrainerConfig
from quintain.failure import QuintainError
from quintain.trainers.model.forward import plain_model
from quintain.trainers.model.policy import VALUE_HEAD
from quintain.trainers.streams import parameters_of


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


def optimizer_of(config: TrainerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that `config` names, of what is trained of `model`. QuintainError where it does not apply, or needs
    a package that is not installed."""
    parameters = parameters_of(model)
    lr, decay = config.learning_rate, config.weight_decay
    if config.optim == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay)
    if config.optim == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=decay)
    if config.optim == "muon":
        return _muon(config, model)
    if config.optim == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise QuintainError("trainer.optim: adamw_8bit needs bitsandbytes: install it, or use adamw") from None
        betas = (config.adam_beta1, config.adam_beta2)
        quantised: torch.optim.Optimizer = AdamW8bit(
            parameters, lr=lr, betas=betas, eps=config.adam_epsilon, weight_decay=decay
        )
        return quantised
    return _adamw(config, parameters)


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimisers as one, whose groups and state are theirs."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()

    def _share(self) -> None:
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state


def _muon(config: TrainerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Muon for the matrices but those of words, AdamW for the rest."""
    if not hasattr(torch.optim, "Muon"):
        raise QuintainError(f"trainer.optim: muon needs a newer torch than {torch.__version__}: use adamw")
    base = plain_model(model)
    words = [base.get_output_embeddings(), getattr(base, "score", None), getattr(base, VALUE_HEAD, None)]
    words += [module for module in base.modules() if isinstance(module, nn.Embedding)]
    apart = {id(parameter) for module in words if module is not None for parameter in module.parameters()}
    trained = parameters_of(model)
    matrices = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in apart]
    if not matrices:
        raise QuintainError("trainer.optim: muon is for matrices, and none of this model is trained: use adamw")
    chosen = {id(parameter) for parameter in matrices}
    lr, decay = config.learning_rate, config.weight_decay
    return MuonAndAdamW(
        torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        _adamw(config, [parameter for parameter in trained if id(parameter) not in chosen]),
    )


def _adamw(config: TrainerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    lr, decay, betas = config.learning_rate, config.weight_decay, (config.adam_beta1, config.adam_beta2)
    groups = [{"params": parameters}]  # which may be none
    return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, betas=betas, eps=config.adam_epsilon, fused=True)
