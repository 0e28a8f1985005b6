"""Any Gymnasium environment that can be put into text: its observations are read, its actions are said.

What always holds: a task is a seed of Gymnasium's own, so every episode on it is the same for the same actions, and
"train" never has a seed of "heldout". The reward of a step is Gymnasium's. What is said is an action where it names
one; where it does not, the game stands still, the policy is told what an action is, and the turn is used up.

What is shown is what the environment writes (render mode "ansi", what it paints in brackets), else its observation
where that is text or at most 64 numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from quintain.codec import to_json
from quintain.envs.base import Action, Environment, Observation, Step, out_of_turn
from quintain.envs.builtin.numbered import numbered
from quintain.failure import QuintainError, one_line
from quintain.messages import system, user
from quintain.task import Task, TaskSource, plain

if TYPE_CHECKING:
    import gymnasium

MOST_NUMBERS: Final = 64
SEEDS: Final = 1 << 31
_PAINTED: Final = re.compile(r"\x1b\[[\d;]+m(.*?)\x1b\[0m", re.DOTALL)
_WORD: Final = re.compile(r"-?\w+")


class GymnasiumEnv(Environment):
    """A Gymnasium environment in words, such as FrozenLake-v1; the rewards are its own.

    `actions` are names for the actions of a discrete space, in their order; without them, actions are numbers. `about`
    is what the policy is told first. An episode is truncated after `max_turns` turns.
    """

    splits = ("train", "heldout")

    def __init__(
        self,
        *,
        game: str,
        kwargs: Mapping[str, Any] | None = None,
        actions: Sequence[str] | None = None,
        about: str | None = None,
        max_turns: int = 50,
    ) -> None:
        if max_turns < 1:
            raise QuintainError(f"GymnasiumEnv's max_turns is at least 1, not {max_turns}")
        self._game = made(game, kwargs, actions)
        self._space: Any = self._game.action_space
        count, start = getattr(self._space, "n", 0), getattr(self._space, "start", 0)
        self._names = [name.lower() for name in actions or map(str, range(start, start + count))]
        self._about = about or f"You play {game}. {self._how()}"
        self._max_turns, self._left, self._played = max_turns, 0, False

    @classmethod
    def tasks(  # type: ignore[override]  # there is no game that goes without saying
        cls,
        split: str,
        *,
        game: str,
        kwargs: Mapping[str, Any] | None = None,
        actions: Sequence[str] | None = None,
        heldout: int = 100,
        seed: int = 0,
    ) -> TaskSource:
        """The tasks of `split`: seeds of `game`, which is made with `kwargs`. Raises QuintainError, one line, where it
        cannot be made, or cannot be put into text."""
        made(game, kwargs, actions).close()
        return numbered(split, SEEDS, lambda number: Task(f"{game}-{number}", seed=number), heldout=heldout, seed=seed)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show what to do, and the game as the task's seed begins it."""
        observed, _ = self._game.reset(seed=seed if task.seed is None else task.seed)
        self._left, self._played = self._max_turns, True
        return Observation((system(self._about), user(self._shown(observed))))

    async def step(self, action: Action) -> Step:
        """Play the action that is said. Raises FailureError after the end."""
        if not self._left:
            raise out_of_turn(begun=self._played)
        self._left -= 1
        said = self._action(action.content)
        if said is None:
            told = Observation((user(f"That is no action. {self._how()}"),))
            return Step(told, 0.0, False, truncated=not self._left, info={"no_action": 1})
        observed, reward, terminated, truncated, _ = self._game.step(said)
        if terminated or truncated:
            self._left = 0
        told = Observation((user(self._shown(observed)),))
        return Step(told, float(reward), terminated, truncated=not terminated and not self._left)

    async def close(self) -> None:
        """Close the game."""
        self._game.close()

    def _how(self) -> str:
        from gymnasium.spaces import Text

        if isinstance(self._space, Text):
            return "An action is text."
        if self._names:
            return f"An action is one of: {', '.join(self._names)}. End your answer with it."
        return f"An action is JSON for {self._space}."

    def _action(self, said: str) -> Any:
        """The action that `said` ends with, or None."""
        import numpy as np
        from gymnasium.spaces import Text

        space = self._space
        if self._names:
            named = [word for word in _WORD.findall(said.lower()) if word in self._names]
            return space.start + self._names.index(named[-1]) if named else None
        if isinstance(space, Text):
            return said.strip() if space.contains(said.strip()) else None
        try:
            value = json.loads(said)
            action = np.asarray(value, space.dtype).reshape(space.shape) if space.shape else value
        except (ValueError, TypeError):
            return None
        return action if space.contains(action) else None

    def _shown(self, observed: Any) -> str:
        if self._game.render_mode == "ansi":
            return _PAINTED.sub(r"[\1]", str(self._game.render())).strip("\n")
        return observed if isinstance(observed, str) else to_json(plain(observed, "an observation"))


def made(game: str, kwargs: Mapping[str, Any] | None, actions: Sequence[str] | None) -> gymnasium.Env[Any, Any]:
    """The environment `game`. Raises QuintainError where there is none, or where it is not for words."""
    import gymnasium

    try:
        options: dict[str, Any] = {"render_mode": "ansi"} if "ansi" in _modes(game) else {}
        env: gymnasium.Env[Any, Any] = gymnasium.make(game, **options, **(kwargs or {}))
    except Exception as error:  # the boundary: games check their options with whatever they have
        raise QuintainError(f"the game {game!r} of gymnasium cannot be made: {one_line(str(error))}") from None
    count = getattr(env.action_space, "n", None)
    if actions is not None and len(actions) != count:
        raise QuintainError(f"the game {game!r} has {count or 'no countable'} actions, not {len(actions)}")
    numbers = 0 if env.render_mode == "ansi" else _numbers(env.observation_space)
    if numbers > MOST_NUMBERS:
        raise QuintainError(f"the game {game!r} shows {numbers} numbers: at most {MOST_NUMBERS} are put into text")
    return env


def _modes(game: str) -> Sequence[str]:
    """The render modes that the class of `game` knows."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    entry = gymnasium.spec(game).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    return list(getattr(creator, "metadata", {}).get("render_modes", ()))


def _numbers(space: Any) -> int:
    """How many numbers an observation of `space` has; text is none."""
    if hasattr(space, "spaces"):
        return sum(_numbers(part) for part in getattr(space.spaces, "values", lambda: space.spaces)())
    return math.prod(space.shape) if space.shape else 0
