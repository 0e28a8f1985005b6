"""An environment that costs nothing and never ends: what is left of a step is the way to it."""

from __future__ import annotations

from quintain.envs import Action, EndlessTasks, Environment, Observation, Step, Task, TaskSource, user


class StillEnv(Environment):
    """Says the same at every turn."""

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return EndlessTasks(lambda index: Task(f"{split}-{index}", (user("Begin."),)))

    async def reset(self, task: Task, *, seed: int) -> Observation:
        return Observation(task.prompt)

    async def step(self, action: Action) -> Step:
        return Step(Observation((user("Go on."),)), 0.0, False)
