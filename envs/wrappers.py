"""Limits and shaping for any environment: mixed in before it, and so an environment like any other.

    class ShortCalculator(TurnLimit, ObservationLimit, CalculatorEnv):
        \"""A calculator with little patience.\"""

        turn_limit = 4
        observation_chars = 500

What always holds: options, tasks and splits are those of the environment; what it says and pays is changed in nothing
but what the wrapper is for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from quintain.envs.base import Action, Environment, Observation, Step
from quintain.messages import Message
from quintain.task import Task


class TurnLimit(Environment):
    """Truncates an episode that is not over after `turn_limit` turns; it keeps what it was paid until then."""

    turn_limit: ClassVar[int]
    __turns = 0  # with a name of its own, whatever the environment has

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.__turns = 0
        return await super().reset(task, seed=seed)  # type: ignore[safe-super]  # the environment's

    async def step(self, action: Action) -> Step:
        step = await super().step(action)  # type: ignore[safe-super]
        self.__turns += 1
        return replace(step, truncated=True) if not step.ended and self.__turns >= self.turn_limit else step


class ObservationLimit(Environment):
    """Leaves out the middle of each message that has more than `observation_chars` characters."""

    observation_chars: ClassVar[int]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        return self._short(await super().reset(task, seed=seed))  # type: ignore[safe-super]

    async def step(self, action: Action) -> Step:
        step = await super().step(action)  # type: ignore[safe-super]
        return replace(step, observation=self._short(step.observation))

    def _short(self, observation: Observation) -> Observation:
        def short(message: Message) -> Message:
            if len(message.text) <= self.observation_chars:
                return message
            return replace(message, content=without_middle(message.text, self.observation_chars))

        return replace(observation, messages=tuple(map(short, observation.messages)))


class ShapedReward(Environment):
    """Pays for each step what `shaped` says."""

    def shaped(self, action: Action, step: Step) -> float:
        """What `step`, the environment's answer to `action`, is worth; `step.reward` is what it pays itself."""
        return step.reward

    async def step(self, action: Action) -> Step:
        step = await super().step(action)  # type: ignore[safe-super]
        return replace(step, reward=self.shaped(action, step))


def without_middle(text: str, limit: int) -> str:
    """`text`; where it is longer than `limit`, only so many characters from its ends, and how many are left out."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}\n({len(text) - limit} characters left out)\n{text[head - limit :]}"
