"""Which token gets which advantage, by episode and by turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from quintain.config import GRPOConfig
from quintain.messages import assistant
from quintain.trainers.algorithms.grpo import GRPO
from quintain.trainers.rows import Rows
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan


def episode(member: int, rewards: Sequence[float], *, fork: bool = False) -> Trajectory:
    """Turns of two tokens each with these rewards; with `fork` the second one starts a row of its own."""

    def turn(at: int, reward: float) -> Turn:
        parting = "the template rewrote history" if fork and at == 1 else None
        return Turn(
            [1, 2],
            [3, 4],
            [-1.0, -1.0],
            Finish.STOP,
            (VersionSpan(0, 0, 2),),
            assistant("x"),
            reward=reward,
            fork=parting,
        )

    turns = tuple(turn(at, reward) for at, reward in enumerate(rewards))
    return Trajectory(f"t{member}", "g", "k", 0, member, 0, turns, Ending.TERMINATED, sum(rewards))


def credited(episodes: Sequence[Trajectory], **options: object) -> Rows:
    grpo = GRPO(GRPOConfig(scale_rewards="none", **options), longest=8)  # type: ignore[arg-type]
    return grpo.credit(grpo.rows([Group("g", 0, tuple(episodes))], version=0))


@pytest.mark.parametrize("fork", [False, True])
def test_a_turn_is_compared_with_the_same_turn_of_the_others_by_what_is_still_to_come(fork: bool) -> None:
    rows = credited(
        [episode(0, [0.0, 1.0], fork=fork), episode(1, [0.0, 0.0]), episode(2, [1.0])], credit="turn", discount=0.5
    )
    found: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for row in rows.rows:
        found[row.trajectory] += row.columns["advantage"].tolist()
    # Returns of the first turns: 0.5, 0, 1, mean 0.5; of the second ones: 1, 0, mean 0.5.
    assert found == {0: [0.0, 0.0, 0.5, 0.5], 1: [-0.5, -0.5, -0.5, -0.5], 2: [0.5, 0.5]}


def test_by_episode_every_token_has_the_advantage_of_all_of_it() -> None:
    rows = credited([episode(0, [0.0, 1.0]), episode(1, [0.0])])
    assert [row.columns["advantage"].tolist() for row in rows.rows] == [[0.5] * 4, [-0.5] * 2]


def test_with_a_reward_at_the_end_alone_turns_that_all_had_are_credited_as_the_episode_is() -> None:
    episodes = [episode(member, [0.0, float(member % 2)]) for member in range(4)]
    by_turn, by_episode = (credited(episodes, credit=how) for how in ("turn", "episode"))
    for one, other in zip(by_turn.rows, by_episode.rows, strict=True):
        np.testing.assert_allclose(one.columns["advantage"], other.columns["advantage"])
