"""One episode as a pure state machine: no clock, no socket, no environment.

    created --opened--> running --answered(ended)--> done
       |                   |
       +-----failed--------+--> failed             every state --close--> closed

What always holds:
- the turns that were played are 0, 1, 2, ... without gaps, and at most the last of them is unanswered;
- each turn is run at most once: asking again with the same action replays its answer (or joins the run in
  progress), asking with another action, out of order, after the end or on a closed episode is refused;
- a state once left is never entered again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from quintain.envs.base import Action
from quintain.failure import Failure

A = TypeVar("A")


class EpisodeState(StrEnum):
    """Where an episode is in its life."""

    CREATED = "created"  # waiting for a slot or for the environment's reset
    RUNNING = "running"  # the environment waits for an action, or works on one
    DONE = "done"  # the environment ended it
    FAILED = "failed"  # something broke
    CLOSED = "closed"  # somebody closed it


@dataclass(frozen=True, slots=True)
class PlayTurn:
    """Run the turn: it is the next one."""


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for the run in progress: it is of this very action."""


@dataclass(frozen=True, slots=True)
class Replay(Generic[A]):
    """Give the stored answer or failure of this very action."""

    answer: A | Failure


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse, and say why."""

    reason: str


Decision = PlayTurn | Join | Replay[A] | Refuse


@dataclass(slots=True)
class Episode(Generic[A]):
    """The life of one episode; `A` is what an answered turn is stored as."""

    state: EpisodeState = EpisodeState.CREATED
    actions: list[Action] = field(default_factory=list)
    answers: list[A | Failure] = field(default_factory=list)

    @property
    def turn(self) -> int:
        """The number that the next new step must carry."""
        return len(self.answers)

    @property
    def busy(self) -> bool:
        """Whether a turn is being played."""
        return len(self.actions) > len(self.answers)

    @property
    def live(self) -> bool:
        """Whether there is an environment behind it, or will be."""
        return self.state in (EpisodeState.CREATED, EpisodeState.RUNNING)

    def opened(self) -> None:
        """The environment has been reset."""
        self._expect(EpisodeState.CREATED)
        self.state = EpisodeState.RUNNING

    def ask(self, turn: int, action: Action) -> Decision[A]:
        """What to do about a step that says it is `turn`; after PlayTurn, `answered` or `failed` must follow."""
        if self.state is EpisodeState.CLOSED:
            return Refuse("the episode is closed")
        if 0 <= turn < len(self.actions):
            if self.actions[turn] != action:
                return Refuse(f"turn {turn} was already played, with another action")
            return Replay(self.answers[turn]) if turn < len(self.answers) else Join()
        if self.state is not EpisodeState.RUNNING:
            return Refuse(_NOT_RUNNING[self.state])
        if turn != self.turn or self.busy:
            playing = f"turn {self.turn} is being played" if self.busy else f"the next turn is {self.turn}"
            return Refuse(f"turn {turn} is out of order: {playing}")
        self.actions.append(action)
        return PlayTurn()

    def answered(self, answer: A, *, ended: bool) -> None:
        """The environment has answered the turn being played."""
        self._expect(EpisodeState.RUNNING)
        if not self.busy:
            raise RuntimeError("no turn is being played, so there is nothing to answer")
        self.answers.append(answer)
        if ended:
            self.state = EpisodeState.DONE

    def failed(self, failure: Failure) -> None:
        """The reset, the turn being played or the environment behind it broke; a turn in play stores the failure."""
        if not self.live:
            raise RuntimeError(f"an episode that is {self.state} cannot fail")
        if self.busy:
            self.answers.append(failure)
        self.state = EpisodeState.FAILED

    def close(self) -> None:
        """Somebody closed it.

        Nothing more is answered, and nothing is stored any longer. Closing twice is fine.
        """
        self.state = EpisodeState.CLOSED
        self.actions.clear()
        self.answers.clear()

    def _expect(self, state: EpisodeState) -> None:
        if self.state is not state:
            raise RuntimeError(f"expected an episode that is {state}, this one is {self.state}")


_NOT_RUNNING = {
    EpisodeState.CREATED: "the episode has not begun: wait for the answer that created it",
    EpisodeState.DONE: "the episode has ended",
    EpisodeState.FAILED: "the episode has failed",
}
