"""Twenty questions: find out what the user thinks of, by asking what can be answered with yes or no.

What always holds: the user answers by rule. A question is about the values that it names; the answer is yes where, of
every property that it names values of, the thing has one of those. It is a guess, and the goal where it is right, where
it names exactly one value of every property. What names none, or says "not", is no question, and is told so.

The reward is 0.8 for the thing, and up to 0.2 for what the answers have told of it (the share of the bits). The split
"train" never has a task of "heldout".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Final

from quintain.envs.base import Action
from quintain.envs.builtin.numbered import numbered
from quintain.envs.chat import ChatEnv, User, UserReply
from quintain.failure import QuintainError
from quintain.messages import Message
from quintain.task import Task, TaskSource

PROPERTIES: Final[Mapping[str, tuple[str, ...]]] = {
    "size": ("tiny", "small", "medium", "large", "huge", "long", "short", "wide"),
    "colour": ("red", "blue", "green", "yellow", "black", "white", "brown", "pink"),
    "material": ("wooden", "iron", "glass", "paper", "stone", "plastic", "silver", "leather"),
    "kind": ("box", "ball", "cup", "ring", "key", "chair", "lamp", "boat"),
}
FOUND: Final = 0.8
NARROWED: Final = 0.2
_NEGATIONS: Final = re.compile(r"\b(?:not|neither|nor|never|except|without|\w+n't)\b")
_HOW: Final = 'Ask what I can answer with yes or no, such as "Is it {a} or {b}?", or guess it: "Is it the {thing}?"'


class TwentyQuestionsEnv(ChatEnv):
    """Twenty questions about a thing with a few properties; reward 1 for finding it, up to 0.2 for coming closer."""

    splits = ("train", "heldout")
    max_turns = 20

    @classmethod
    def tasks(
        cls, split: str, *, properties: int = 3, values: int = 4, heldout: int = 200, seed: int = 0
    ) -> TaskSource:
        """The tasks of `split`: things with 1 to 4 `properties`, each of which has one of 2 to 8 `values`."""
        most = len(next(iter(PROPERTIES.values())))
        if not (1 <= properties <= len(PROPERTIES) and 2 <= values <= most):
            raise QuintainError(
                f"properties are 1 to {len(PROPERTIES)} and values 2 to {most}, not {properties} and {values}"
            )
        names = list(PROPERTIES)[-properties:]
        ways = [(offered, value) for offered in combinations(range(most), values) for value in offered]

        def task(number: int) -> Task:
            world, thing, rest = {}, [], number
            for name in names:
                rest, way = divmod(rest, len(ways))
                offered, value = ways[way]
                world[name] = [PROPERTIES[name][n] for n in offered]
                thing.append(PROPERTIES[name][value])
            return Task(f"thing-{number}", reference={"world": world, "thing": thing})

        return numbered(split, len(ways) ** properties, task, heldout=heldout, seed=seed)

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action]:
        """The right guess."""
        return (Action.text(f"Is it the {' '.join(task.reference['thing'])}?"),)

    def user(self, task: Task, *, seed: int) -> User:
        """Somebody who thinks of the task's thing."""
        self._thinker = _Thinker(task.reference["world"], task.reference["thing"], self.max_turns)
        return self._thinker

    def verdict(self, history: Sequence[Message]) -> dict[str, float]:
        """What was found, and how close the answers came to it."""
        return {"found": FOUND * (self.end == "goal"), "narrowed": NARROWED * self._thinker.narrowed}


class _Thinker(User):
    """Thinks of `thing`, one value of each property of `world`."""

    def __init__(self, world: Mapping[str, Sequence[str]], thing: Sequence[str], turns: int) -> None:
        self._world, self._thing, self._turns = world, tuple(thing), turns
        self._possible = list(product(*world.values()))
        self._all = len(self._possible)
        self._property = {value: place for place, values in enumerate(world.values()) for value in values}

    @property
    def narrowed(self) -> float:
        """The share of the bits of the thing that the answers have told."""
        return 1 - math.log(len(self._possible)) / math.log(self._all)

    async def reply(self, history: Sequence[Message]) -> UserReply:
        if not history:
            return UserReply(self._opening())
        said = history[-1].text.lower().replace("’", "'")
        named: dict[int, set[str]] = {}
        for word in re.findall(r"\w+", said):
            if word in self._property:
                named.setdefault(self._property[word], set()).add(word)
        if not named or _NEGATIONS.search(said):
            return UserReply(self._how())
        yes = _has(self._thing, named.items())
        self._possible = [thing for thing in self._possible if _has(thing, named.items()) == yes]
        if yes and len(named) == len(self._thing) and all(len(values) == 1 for values in named.values()):
            return UserReply(f"Yes! It is the {' '.join(self._thing)}.", "goal")
        return UserReply("Yes." if yes else "No.")

    def _opening(self) -> str:
        worlds = [f"Its {name} is {', '.join(values[:-1])} or {values[-1]}." for name, values in self._world.items()]
        times = f"You have {self._turns} questions, one at a time."
        return " ".join(["I am thinking of a thing.", *worlds, self._how(), times])

    def _how(self) -> str:
        first = next(iter(self._world.values()))
        return _HOW.format(a=first[0], b=first[1], thing=" ".join(values[0] for values in self._world.values()))


def _has(thing: Sequence[str], named: Iterable[tuple[int, set[str]]]) -> bool:
    return all(thing[place] in values for place, values in named)
