"""PPO learns, and where a reward comes late its critic learns from it what a group cannot tell."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from quintain.config import parse_config
from quintain.trainers.algorithms import algorithm_of
from quintain.trainers.learner import Learner

from .games import learn, make_player

torch.set_num_threads(1)
PPO = {"algorithm": "ppo", "prompts_per_step": 64, "num_iterations": 2, "kl_coef": 0.0, "lam": 0.9}
RLOO = {"algorithm": "rloo", "prompts_per_step": 16, "num_generations": 4, "num_iterations": 2, "beta": 0.0}


def rewards(folder: Path, trainer: dict[str, Any], *, seed: int, steps: int, turns: int) -> list[float]:
    """The mean reward of each batch of 64 episodes."""
    player = make_player(folder / f"player-{seed}", seed)
    common = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_steps": steps, "threads": 1}
    config = parse_config(
        f"model: {{path: {player}, compute_dtype: float32}}\nenvironment: {{name: math}}\n",
        [f"trainer.{name}={json.dumps(value)}" for name, value in (common | trainer).items()],
    )
    learner = Learner(config, algorithm_of(config), checkpoints=folder / "checkpoints", logs=folder / "logs")
    try:
        return learn(learner, seed=seed, steps=steps, turns=turns)
    finally:
        learner.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_what_is_rewarded(tmp_path: Path, seed: int) -> None:
    found = rewards(tmp_path, PPO, seed=seed, steps=30, turns=1)
    assert found[0] < 0.3, found
    assert statistics.mean(found[-3:]) > 0.8, found


@pytest.mark.slow
def test_of_one_reward_for_six_turns_a_critic_learns_more_than_a_group_does(tmp_path: Path) -> None:
    ends = {
        name: [
            statistics.mean(rewards(tmp_path / name, trainer, seed=seed, steps=22, turns=6)[-3:]) for seed in range(3)
        ]
        for name, trainer in {"ppo": PPO, "rloo": RLOO}.items()
    }
    assert statistics.median(ends["ppo"]) > statistics.median(ends["rloo"]) + 0.05, ends
