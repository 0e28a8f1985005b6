"""The learning rate is transformers' own schedule."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from quintain.config import parse_config
from quintain.trainers.schedule import learning_rate


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_rate_of_every_step_is_that_of_transformers(kind: str, warmup: int) -> None:
    config = parse_config(
        "model: {path: x}\nenvironment: {name: math}\n"
        f"trainer: {{max_steps: 20, learning_rate: 0.001, lr_scheduler_type: {kind}, warmup_steps: {warmup}}}"
    ).trainer
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    name = "constant_with_warmup" if kind == "constant" else kind
    peer = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert learning_rate(config, step) == pytest.approx(peer.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        peer.step()
