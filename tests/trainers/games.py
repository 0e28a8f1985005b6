"""A game that a tiny model learns within a minute, for tests of whether an algorithm learns at all.

In each turn the environment shows a symbol and the policy answers with a token; right is the symbol after it. The share
of right answers comes as one reward at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintain.messages import assistant
from quintain.trainers.learner import Learner
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from ..tiny_llama import tiny_llama

SYMBOLS = 8
"""As many words has the model: guessing gets an eighth right."""


def make_player(folder: Path, seed: int) -> Path:
    """Save a model that knows nothing of the game, and a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}))).save_pretrained(folder)
    tiny_llama(seed, words=SYMBOLS, length=32, initializer_range=0.1).save_pretrained(folder)
    return folder


def play(learner: Learner[Any], *, seed: int, groups: int, members: int, turns: int) -> list[Group]:
    """Groups of episodes that the policy samples, each of other symbols; the members of a group see the same ones."""
    count = groups * members
    shown = np.repeat(np.random.default_rng(seed).integers(0, SYMBOLS, (groups, turns)), members, axis=0)
    generator = torch.Generator().manual_seed(seed)
    ids, logps = np.empty((count, 0), np.int64), []
    learner.model.eval()
    for n in range(turns):
        ids = np.concatenate([ids, shown[:, n : n + 1]], axis=1)
        with torch.no_grad():
            scores = learner.model(input_ids=torch.from_numpy(ids), use_cache=False).logits[:, -1].log_softmax(-1)
        drawn = torch.multinomial(scores.exp(), 1, generator=generator)
        logps.append(scores.gather(1, drawn).numpy())
        ids = np.concatenate([ids, drawn.numpy()], axis=1)
    right = (ids[:, 1::2] == (shown + 1) % SYMBOLS).mean(1)

    def episode(i: int) -> Trajectory:
        said = tuple(
            Turn(
                ids[i, 2 * n : 2 * n + 1].tolist(), ids[i, 2 * n + 1 : 2 * n + 2].tolist(), logps[n][i].tolist(),
                Finish.STOP, (VersionSpan(0, 0, 1),), assistant("x"), reward=float(right[i]) if n == turns - 1 else 0.0,
            )
            for n in range(turns)
        )  # fmt: skip
        g = i // members
        return Trajectory(f"{i}", f"{g}", "k", g, i % members, 0, said, Ending.TERMINATED, float(right[i]))

    return [Group(f"{g}", g, tuple(episode(i) for i in range(g * members, (g + 1) * members))) for g in range(groups)]


def learn(learner: Learner[Any], *, seed: int, steps: int, turns: int = 1) -> list[float]:
    """The mean reward of each step's batch."""
    options = learner.config.online
    rewards = []
    for step in range(steps):
        batch = play(
            learner,
            seed=1000 * seed + step,
            groups=options.prompts_per_step,
            members=options.num_generations,
            turns=turns,
        )
        rewards.append(float(np.mean([each.reward for group in batch for each in group.trajectories])))
        learner.update(batch, step=step)
    return rewards
