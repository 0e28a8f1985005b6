"""Environments for the tests of whole runs: `mode` says what goes wrong."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from quintain.envs import EndlessTasks, ShellEnv, SingleTurnEnv, Task, TaskSource, WorkFolder, user


class Letters(SingleTurnEnv):
    """Reward for the share of lower-case letters, so that a tiny random model has something to learn."""

    splits = ("train", "heldout")

    def __init__(self, mode: str = "ok", marker: str = "") -> None:
        super().__init__()
        self.mode, self.marker = mode, Path(marker)

    @classmethod
    def tasks(cls, split: str, words: int = 1) -> TaskSource:
        def make(index: int) -> Task:
            return Task(f"{split}-{index}", (user(" ".join([f"Say {index}."] * words)),), reference=index)

        return [make(index) for index in range(6)] if split == "heldout" else EndlessTasks(make)

    async def score(self, answer: str, reference: int) -> float:
        if self.mode == "raises" or (self.mode == "raises_sometimes" and len(answer) % 3 == 0):
            raise RuntimeError("the environment is broken")
        if self.mode == "hangs_sometimes" and len(answer) % 3 == 0:
            await asyncio.sleep(3600)
        if self.mode == "blocks_once" and not self.marker.exists():
            self.marker.touch()
            time.sleep(3600)  # noqa: ASYNC251
        if self.mode == "slow":
            time.sleep(0.5)  # noqa: ASYNC251
        if self.mode == "nan":
            return float("nan")
        if self.mode == "equal":
            return 0.5
        if self.mode == "empty":
            return 1.0 if answer == "" else 0.0
        if self.mode == "early":
            return sum("a" <= letter <= "h" for letter in answer) / (len(answer) + 1)
        return sum(letter.islower() for letter in answer) / (len(answer) + 1)


class Noted(ShellEnv):
    """A program plays it that writes down what the policy says; the reward is as of Letters."""

    splits = ("train", "heldout")

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return Letters.tasks(split)

    async def check(self, work: WorkFolder, reference: int) -> float:
        said = work.text("said.txt") or ""
        return sum(letter.islower() for letter in said) / (len(said) + 1)
