"""Which token gets which advantage, by episode and by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from trl.rewards import get_soft_overlong_punishment

from quintain.config import GRPOConfig
from quintain.config.loss import LossOptions
from quintain.messages import assistant
from quintain.trainers.algorithms.grpo import GRPO
from quintain.trainers.losses.metrics import combine, metric_values
from quintain.trainers.rows import ENVIRONMENT, Rows, Totals, punished
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from . import trl_oracle
from .loss_batches import LONGEST, ROWS, flat, make_batch, random_advantages, rows_of, totals


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


def test_a_turn_is_punished_for_its_length_as_dapo_does_it() -> None:
    """Against TRL's `get_soft_overlong_punishment`, at every length up to the limit."""
    longest = 12
    for cache in (1, 4, 12):
        theirs = get_soft_overlong_punishment(longest, cache)([[0] * n for n in range(1, longest + 1)])
        for n, expected in enumerate(theirs, start=1):
            said = Turn([1], [3] * n, [-1.0] * n, Finish.STOP, (VersionSpan(0, 0, n),), assistant("x"), reward=0.5)
            done = Trajectory("t", "g", "k", 0, 0, 0, (said,), Ending.TERMINATED, 0.75)
            found = punished(done, longest, cache)
            assert found.reward == pytest.approx(0.75 + expected)
            assert found.turns[0].reward == pytest.approx(0.5 + expected)
            assert found.rewards["soft_overlong"] == pytest.approx(expected)


def test_every_turn_is_punished_for_its_own_length() -> None:
    rows = credited([episode(0, [0.0, 0.0]), episode(1, [1.0, 0.0])], soft_punish_cache=8)  # 2 of 8 tokens each
    assert rows.episodes.reward[:, 0].tolist() == [-0.5, 0.5]


def test_the_environments_tokens_have_a_loss_of_their_own_and_leave_the_policys_as_it_was() -> None:
    """−mean ℓ over them, for any cut; all else is the loss of a batch without them."""
    options = {"loss_type": "grpo", "beta": 0.1, "entropy_coef": 0.2}
    plain, echo = (GRPO(GRPOConfig(**options, env_token_loss_coef=c), longest=LONGEST) for c in (0.0, 0.3))  # type: ignore[arg-type]
    for seed in range(3):
        whole = flat(make_batch(seed), random_advantages(seed), LossOptions())
        theirs = ~whole.mask & (torch.arange(len(whole.mask)) % 2 == 0)
        given = replace(whole, mask=whole.mask | theirs, columns={ENVIRONMENT: theirs.double()})
        counts = totals(whole)
        more = Totals(rows=ROWS, tokens=counts.tokens, environment_tokens=int(theirs.sum()), max_completion_length=7)
        expected, without = plain.loss("policy", whole, counts)
        expected = expected - 0.3 * whole.logp[theirs].mean()
        (wanted,) = torch.autograd.grad(expected, whole.logp)
        for parts in ([given], [rows_of(given, [0, 5]), rows_of(given, [1, 2, 3, 4])]):
            found = [echo.loss("policy", part, more) for part in parts]
            loss = torch.stack([each for each, _ in found]).sum()
            (gradient,) = torch.autograd.grad(loss, whole.logp, retain_graph=True)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(gradient, wanted)
            logged = metric_values(combine(metrics for _, metrics in found))
            assert logged.pop("env_token_loss") == pytest.approx(-float(whole.logp.detach()[theirs].mean()))
            assert logged == pytest.approx(metric_values(without))


def test_what_the_environment_wrote_between_turns_is_observed_and_the_prompt_is_not() -> None:
    (row, forked) = credited([episode(0, [0.0, 1.0]), episode(1, [0.0, 0.0])], env_token_loss_coef=0.1).rows[:2]
    assert row.segment.mask.tolist() == [False, False, True, True, True, True, True, True]
    assert row.columns[ENVIRONMENT].tolist() == [0, 0, 1, 1, 0, 0]
    assert row.columns["advantage"].tolist() == [0.5, 0.5, 0, 0, 0.5, 0.5]
    rows = credited([episode(0, [0.0, 1.0]), episode(1, [0.0, 0.0], fork=True)], env_token_loss_coef=0.1)
    assert [each.columns[ENVIRONMENT].sum() for each in rows.rows] == [2, 0, 0]
    assert (rows.totals.tokens, rows.totals.environment_tokens) == (8, 2)
    assert forked.environment_tokens == 2


def test_the_weight_of_the_entropy_follows_its_target_as_in_trl() -> None:
    """Against TRL's controller over steps whose entropy is now below and now above the target, and at both bounds."""
    adaptive = {"entropy_coef": 0.02, "entropy_coef_delta": 0.015, "entropy_coef_min": 0.01, "entropy_coef_max": 0.04}
    grpo = GRPO(GRPOConfig(entropy_target=0.8, **adaptive), longest=LONGEST)  # type: ignore[arg-type]
    theirs = {
        "_entropy_bonus_enabled": True,
        "_last_world_entropy": float("inf"),
        "_entropy_window_stats": None,
        "entropy_coef": 0.02,
    }
    options = {"use_adaptive_entropy": True, "entropy_target": 0.8, "max_completion_length": LONGEST, **adaptive}
    weights = []
    for seed, scale in enumerate([1, 2, 1, 0.5, 0.5, 0.5, 1, 2, 2, 2, 0.5]):
        batch = make_batch(seed)
        batch.entropy.mul_(scale)
        inputs, _ = trl_oracle.score(batch)
        inputs["advantages"] = random_advantages(seed)
        expected, _, _ = trl_oracle.loss(batch, inputs, state=theirs, **options)
        given = flat(batch, random_advantages(seed), LossOptions())
        loss, metrics = grpo.loss("policy", given, totals(given))
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=1e-9, check_dtype=False)
        grpo.remember(metric_values(metrics))
        weights.append(grpo.state["entropy_coef"])
        assert weights[-1] == pytest.approx(theirs["entropy_coef"])
    assert {min(weights), max(weights)} == {0.01, 0.04}
