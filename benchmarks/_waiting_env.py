"""An environment that does nothing but take time: a turn lasts a log-normal number of seconds of mean `seconds`."""

from __future__ import annotations

import asyncio
import math
import random

from quintain.envs import Action, EndlessTasks, Environment, Observation, Step, Task, TaskSource, user


class WaitingEnv(Environment):
    """`turns` turns; sigma 1 makes one turn in a hundred take six times the mean."""

    def __init__(self, turns: int = 10, seconds: float = 1.0, sigma: float = 1.0) -> None:
        self._turns, self._seconds, self._sigma = turns, seconds, sigma
        self._random = random.Random(0)
        self._left = turns

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return EndlessTasks(lambda index: Task(f"{split}-{index}", (user(f"Task {index}: begin."),)))

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self._random = random.Random(seed)
        self._left = self._turns
        return Observation(task.prompt)

    async def step(self, action: Action) -> Step:
        mu = math.log(self._seconds) - self._sigma**2 / 2 if self._seconds else 0.0
        await asyncio.sleep(self._random.lognormvariate(mu, self._sigma) if self._seconds else 0.0)
        self._left -= 1
        return Step(Observation((user(f"Go on, {self._left} turns are left."),)), 0.0, self._left <= 0)
