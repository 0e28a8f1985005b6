"""The episode state machine, against a model that remembers everything."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quintain.envs.base import Action
from quintain.envs.serving.episode import Episode, EpisodeState, Join, PlayTurn, Refuse, Replay
from quintain.failure import Failure, FailureKind, Stage

BROKEN = Failure.of(FailureKind.CRASHED, Stage.STEP, "broken")
actions = st.sampled_from([Action.text(word) for word in "abc"])


class Life(RuleBasedStateMachine):
    """Every order of events a server can meet. `played` is the model: what each turn was run with."""

    def __init__(self) -> None:
        super().__init__()
        self.episode: Episode[str] = Episode()
        self.played: list[Action] = []
        self.answers: list[object] = []
        self.left: set[EpisodeState] = set()
        self.state = EpisodeState.CREATED

    def now(self) -> None:
        if self.episode.state is not self.state:
            self.left.add(self.state)
            self.state = self.episode.state

    @precondition(lambda self: self.episode.state is EpisodeState.CREATED)
    @rule()
    def open(self):
        self.episode.opened()
        self.now()

    @rule(turn=st.integers(-1, 6), action=actions)
    def ask(self, turn, action):
        decision = self.episode.ask(turn, action)
        if self.state is EpisodeState.CLOSED:
            assert isinstance(decision, Refuse)
        elif 0 <= turn < len(self.played):
            if action != self.played[turn]:
                assert isinstance(decision, Refuse)
            elif turn < len(self.answers):
                assert decision == Replay(self.answers[turn])
            else:
                assert decision == Join()
        elif self.state is EpisodeState.RUNNING and turn == len(self.played) == len(self.answers):
            assert decision == PlayTurn()
            self.played.append(action)
        else:
            assert isinstance(decision, Refuse)

    @precondition(lambda self: self.episode.state is EpisodeState.RUNNING and self.episode.busy)
    @rule(ended=st.booleans())
    def answer(self, ended):
        self.answers.append(f"answer {len(self.answers)}")
        self.episode.answered(self.answers[-1], ended=ended)
        self.now()
        assert self.state is (EpisodeState.DONE if ended else EpisodeState.RUNNING)

    @precondition(lambda self: self.episode.live)
    @rule()
    def fail(self):
        if self.episode.busy:
            self.answers.append(BROKEN)
        self.episode.failed(BROKEN)
        self.now()

    @rule()
    def close(self):
        self.episode.close()
        self.now()

    @precondition(lambda self: not self.episode.live)
    @rule()
    def nothing_more_happens_to_an_episode_that_is_over(self):
        for event in (
            self.episode.opened,
            lambda: self.episode.failed(BROKEN),
            lambda: self.episode.answered("late", ended=False),
        ):
            with pytest.raises(RuntimeError):
                event()

    @invariant()
    def at_most_one_turn_is_unanswered(self):
        assert len(self.episode.actions) - len(self.episode.answers) in (0, 1)

    @invariant()
    def no_state_is_entered_twice(self):
        assert self.episode.state not in self.left

    @invariant()
    def nothing_is_kept_of_a_closed_episode(self):
        if self.episode.state is EpisodeState.CLOSED:
            assert not self.episode.actions
            assert not self.episode.answers


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_an_answer_to_a_turn_that_nobody_plays_is_a_mistake():
    episode: Episode[str] = Episode()
    episode.opened()
    with pytest.raises(RuntimeError, match="no turn is being played"):
        episode.answered("answer", ended=False)
