"""Our environments as Gymnasium's: text in, text out, synchronous.

    import gymnasium, quintain.envs.gym
    env = gymnasium.make("quintain/Math-v0")

Gymnasium has no plugins since 1.0: importing this module is what registers them, and
`gymnasium.make("quintain.envs.gym:quintain/Math-v0")` imports it by itself. What always holds: `reset(seed=...)`
chooses the task, so the same seed gives the same episode; the reference is not in `info`.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import gymnasium
from gymnasium.spaces import Text

from quintain.codec import to_builtins
from quintain.envs.base import Action, Environment, Observation
from quintain.envs.local import LocalClient
from quintain.envs.registry import resolve
from quintain.failure import QuintainError
from quintain.loop_thread import LoopThread
from quintain.task import POLICY, size_of

T = TypeVar("T")

ACTION_CHARACTERS = 256
"""The longest action that sampling makes; longer ones are welcome."""
OBSERVATION_CHARACTERS = 1 << 20
ENDLESS = 1 << 31
"""How many tasks of an endless split seeds choose from."""


class AnyText(Text):
    """Text in any script, up to a length; samples are printable ASCII."""

    def __init__(self, sampled: int, longest: int) -> None:
        super().__init__(sampled, min_length=0, charset=string.printable)
        self.longest = longest

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.longest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and super().__eq__(other) and self.longest == other.longest

    __hash__ = None  # type: ignore[assignment]  # as Text itself


class GymEnv(gymnasium.Env[str, str]):
    """The environment `env` (a class or a spec of `quintain.envs.registry`) with `options`, on the tasks of `split`.

    An observation is the new messages' text; the messages themselves, as OpenAI's objects, are `info["messages"]`.
    `reset(options={"index": i})` chooses the task. In place of a class there may be a client of one, which runs in the
    event loop `within` of another thread, and is not closed here. Raises QuintainError for a wrong spec or option,
    FailureError where the environment fails.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own attribute)

    def __init__(
        self,
        env: str | type[Environment] | LocalClient = "math",
        options: Mapping[str, Any] | None = None,
        split: str = "train",
        *,
        within: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.observation_space = AnyText(ACTION_CHARACTERS, OBSERVATION_CHARACTERS)
        self.action_space = AnyText(ACTION_CHARACTERS, OBSERVATION_CHARACTERS)
        self._lent, self._within = isinstance(env, LocalClient), within
        if isinstance(env, LocalClient):
            self._client = env
        else:
            self._client = LocalClient(resolve(env) if isinstance(env, str) else env, options)
        self._tasks = self._client.tasks(split)
        size = size_of(self._tasks)
        self._size = ENDLESS if size is None else size
        if not self._size:
            raise QuintainError(f"the split '{split}' has no tasks: choose another")
        self._env = self._client.episode()
        self._loop: LoopThread | None = None

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode on a task that `seed`, or `options["index"]`, chooses."""
        super().reset(seed=seed, options=dict(options or {}))
        drawn = int(self.np_random.integers(self._size))
        index = (options or {}).get("index", drawn)
        if not 0 <= index < self._size:
            raise QuintainError(f"options['index'] is from 0 to {self._size - 1}, not {index}")
        task = self._tasks[index]
        observation = self._run(self._env.reset(task, seed=drawn))
        return _text(observation), {"task": task.id, **_info(observation, observation.info)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Say `action`."""
        step = self._run(self._env.step(Action.text(str(action))))
        info = _info(step.observation, step.info)
        return _text(step.observation), step.reward, step.terminated, step.truncated, info

    def close(self) -> None:
        """Close the episode and what its environment held. Closing twice is fine."""
        if self._loop is not None:
            self._run(self._env.close() if self._lent else self._client.aclose())
            self._loop.stop()
            self._loop = None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = LoopThread("quintain-gym", within=self._within)
        return self._loop.run(work)


def _text(observation: Observation) -> str:
    if observation.agent != POLICY:
        raise QuintainError(f"a gymnasium.Env has one player, and it is the turn of {observation.agent!r} of several")
    return "\n\n".join(message.text for message in observation.messages)


def _info(observation: Observation, info: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = to_builtins(dict(info))
    return own | {"messages": [message.to_openai() for message in observation.messages]}


gymnasium.register("quintain/Math-v0", entry_point="quintain.envs.gym:GymEnv", kwargs={"env": "math"})
