"""The games of TextArena (on PyPI, more than 100): alone, or against others, whom a language model plays.

What always holds: a task is a seed of TextArena's own; the same seed and the same words of all players are the same
episode, whatever else this process plays, although the games draw from Python's one random generator. The split "train"
never has a seed of "heldout". The reward is TextArena's for the policy's seat, at the end; an opponent that does not
answer is a failure, never a reward.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from quintain.envs.base import Action, Environment, Observation, Step, invalid, out_of_turn
from quintain.envs.builtin.numbered import numbered
from quintain.envs.chat import UserModel
from quintain.failure import QuintainError, Stage, one_line
from quintain.messages import user
from quintain.task import POLICY, Task, TaskSource
from quintain.thinking import text_after_thinking

T = TypeVar("T")
SEEDS: Final = 1 << 31


class TextArenaEnv(Environment):
    """A game of TextArena (`pip install 'quintain[textarena]'`), such as Wordle-v0; the reward is its own.

    Of its `players` the policy has the `seat`, and `opponent`, a language model behind a URL, has the others; without
    an opponent the policy has them all, each a seat of its own (`player_0`, ...) that is paid for itself. An episode is
    truncated after `max_turns` turns of the policy.
    """

    splits = ("train", "heldout")

    def __init__(
        self, *, game: str, players: int = 1, seat: int = 0, opponent: UserModel | None = None, max_turns: int = 50
    ) -> None:
        if not 0 <= seat < players:
            raise QuintainError(f"TextArenaEnv's seat is 0 to {players - 1}, not {seat}")
        if seat and opponent is None:
            raise QuintainError("TextArenaEnv's seat is against an opponent: give 'opponent', or leave out 'seat'")
        if max_turns < 1:
            raise QuintainError(f"TextArenaEnv's max_turns is at least 1, not {max_turns}")
        self._game_name, self._players, self._seat, self._max_turns = game, players, seat, max_turns
        self._opponent = opponent.endpoint("the opponent") if opponent is not None else None
        self._game: Any = None
        self._left = 0
        self._player, self._told = 0, ""  # whose turn it is, and all that was said to that player
        self._heard: dict[int, str] = {}  # by player
        self._random: Any = None

    @classmethod
    def tasks(  # type: ignore[override]  # there is no game that goes without saying
        cls, split: str, *, game: str, players: int = 1, heldout: int = 100, seed: int = 0
    ) -> TaskSource:
        """The tasks of `split`: seeds of `game`. Raises QuintainError, one line, where it cannot be begun."""
        begun(game, players, 0)
        return numbered(split, SEEDS, lambda number: Task(f"{game}-{number}", seed=number), heldout=heldout, seed=seed)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin the game of the task's seed, and show it once it is the policy's turn."""
        self._random, self._heard, self._left = None, {}, self._max_turns
        self._game = self._drawing(lambda: begun(self._game_name, self._players, task.seed or seed))
        if await self._until_our_turn() is not None:
            raise invalid(f"the game {self._game_name} is over before it has begun", Stage.RESET)
        return self._shown()

    async def step(self, action: Action) -> Step:
        """Play what is said. Raises FailureError after the end, and where an opponent does not answer."""
        if not self._left:
            raise out_of_turn(begun=self._game is not None)
        self._left -= 1
        done, _ = self._drawing(lambda: self._game.step(action.content))
        acted = self._player
        rewards = self._rewards() if done else await self._until_our_turn()
        if rewards is not None:
            self._left = 0
            others = {} if self._alone else {self._agent(n): float(r) for n, r in rewards.items() if n != acted}
            return Step(Observation(), float(rewards.get(acted, 0.0)), True, others=others)
        return Step(self._shown(), 0.0, False, truncated=not self._left)

    async def close(self) -> None:
        """Close the connections to an opponent."""
        if self._opponent is not None:
            await self._opponent.close()

    async def _until_our_turn(self) -> Mapping[int, float] | None:
        """Let the others play; the rewards where that ends the game."""
        while True:
            player, shown = self._drawing(self._game.get_observation)
            if player == self._seat or self._opponent is None:
                self._player, self._told = player, str(shown)
                return None
            reply = (await self._opponent.complete([{"role": "user", "content": str(shown)}])).message.get("content")
            said = (text_after_thinking(reply) or "").strip() if isinstance(reply, str) else ""
            if not said:
                raise invalid(f"the opponent says nothing, but: {str(reply)[:80]!r}")
            if self._drawing(partial(self._game.step, said))[0]:
                return self._rewards()

    def _rewards(self) -> Mapping[int, float]:
        return dict(self._drawing(self._game.close)[0] or {})

    def _shown(self) -> Observation:
        """What is new: most games repeat everything that was said."""
        new = self._told.removeprefix(self._heard.get(self._player, ""))
        self._heard[self._player] = self._told
        return Observation((user(new.strip() or "It is your turn."),), agent=self._agent(self._player))

    @property
    def _alone(self) -> bool:
        """Whether the policy has one seat."""
        return self._players == 1 or self._opponent is not None

    def _agent(self, player: int) -> str:
        return POLICY if self._alone else f"player_{player}"

    def _drawing(self, play: Callable[[], T]) -> T:
        """What `play` gives, with random numbers of this episode's own."""
        outside = random.getstate()
        if self._random is not None:
            random.setstate(self._random)
        try:
            return play()
        finally:
            self._random = random.getstate()
            random.setstate(outside)


def begun(game: str, players: int, seed: int) -> Any:
    """The game, begun. Raises QuintainError, one line, where there is none, or not with so many players."""
    try:
        import textarena
    except ImportError:
        raise QuintainError("games of TextArena need its package: pip install 'quintain[textarena]'") from None
    try:
        made = textarena.make(game)
        made.reset(num_players=players, seed=seed)
    except Exception as error:  # the boundary: games check what they are given with whatever they have
        raise QuintainError(f"the game {game!r} of TextArena with {players} players: {one_line(str(error))}") from None
    return made
