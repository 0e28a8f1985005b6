"""The learning rate is transformers' own schedule."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import get_scheduler

from quintain.config import GRPOConfig, parse_config
from quintain.failure import QuintainError
from quintain.trainers.schedule import learning_rate, optimizer_of

KINDS = {
    "constant": {}, "linear": {}, "cosine": {}, "cosine_with_restarts": {"num_cycles": 2}, "polynomial": {"power": 2.0},
    "cosine_with_min_lr": {"min_lr_rate": 0.1}, "inverse_sqrt": {}, "warmup_stable_decay": {"num_decay_steps": 5},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_rate_of_every_step_is_that_of_transformers(kind: str, warmup: int) -> None:
    config = parse_config(
        "model: {path: x}\nenvironment: {name: math}\n"
        f"trainer: {{max_steps: 20, learning_rate: 0.001, lr_scheduler_type: {kind}, warmup_steps: {warmup},"
        f" lr_scheduler_kwargs: {json.dumps(KINDS[kind])}}}"
    ).trainer
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    name = "constant_with_warmup" if kind == "constant" else kind
    peer = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=20, scheduler_specific_kwargs=KINDS[kind]
    )
    for step in range(20):
        assert learning_rate(config, step) == pytest.approx(peer.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        peer.step()


def test_an_option_that_a_schedule_has_not_is_one_line() -> None:
    config = GRPOConfig(lr_scheduler_type="cosine", lr_scheduler_kwargs={"cycles": 2})
    with pytest.raises(QuintainError, match=r"^trainer\.lr_scheduler_kwargs: .*cycles"):
        learning_rate(config, 0)


@pytest.mark.parametrize(("name", "made"), [("adamw", "AdamW"), ("sgd", "SGD"), ("adafactor", "Adafactor")])
def test_the_optimiser_is_the_one_that_is_named_and_steps(name: str, made: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = optimizer_of(GRPOConfig(optim=name, learning_rate=0.1), [parameter])  # type: ignore[arg-type]
    assert type(optimizer).__name__ == made
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()


def test_an_optimiser_of_a_package_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(QuintainError, match="adamw_8bit needs bitsandbytes"):
        optimizer_of(GRPOConfig(optim="adamw_8bit"), [torch.nn.Parameter(torch.ones(1))])
