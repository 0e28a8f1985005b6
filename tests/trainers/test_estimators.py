"""Advantages against TRL 1.16's own code, closed forms in plain Python, and what a failure must not do."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.trainers.estimators import (
    covariant_tokens,
    discounted,
    explained_variance,
    gae,
    group_advantages,
    leave_one_out,
    pass_at_k_advantages,
    whitened,
    win_rates,
)

from . import trl_oracle
from .loss_batches import ROWS, make_batch

GROUPS = [0, 0, 0, 1, 1, 1]
REWARD = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 0.1, 1.0]))


def trl(rewards: np.ndarray, failed: np.ndarray, **options: Any) -> tuple[np.ndarray, dict[str, float]]:
    """TRL's advantages and metrics; it knows a failed trajectory as one that no reward function scored."""
    table = torch.tensor(np.where(failed[:, None], np.nan, rewards))
    scored, metrics = trl_oracle.score(replace(make_batch(0), rewards=table), **options)
    return scored["advantages"].numpy(), metrics


def random_rewards(seed: int, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [6, K] and one failed trajectory in the second group."""
    g = np.random.default_rng(seed)
    return g.normal(size=(ROWS, components)), np.array([False, False, False, False, True, False])


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 1.0]])
@pytest.mark.parametrize("with_failure", [False, True])
def test_advantages_and_metrics_are_those_of_trl(
    aggregation: Any, scale: Any, weights: list[float] | None, with_failure: bool
) -> None:
    rewards, failed = random_rewards(1, 3)
    failed = failed & with_failure
    ours = group_advantages(
        rewards,
        GROUPS,
        failed=failed,
        weights=weights,
        scale_rewards=scale,
        multi_objective_aggregation=aggregation,
        names=["r0", "r1", "r2"],
    )
    expected, metrics = trl(
        rewards, failed, reward_weights=weights, scale_rewards=scale, multi_objective_aggregation=aggregation
    )
    np.testing.assert_allclose(ours.advantage, expected, rtol=1e-6, atol=1e-6)
    assert ours.advantage.dtype == np.float32
    assert ours.metrics.pop("frac_reward_excluded") == pytest.approx(failed.mean())
    for name, value in ours.metrics.items():
        assert value == pytest.approx(metrics[name], rel=1e-6), name
    assert {name for name in metrics if "reward" in name} == set(ours.metrics)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_share_without_spread_is_that_of_trl(scale: Any) -> None:
    rewards = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    ours = group_advantages(rewards, GROUPS, scale_rewards=scale)
    _, metrics = trl(rewards[:, None], np.zeros(ROWS, dtype=bool), scale_rewards=scale)
    assert ours.metrics["frac_reward_zero_std"] == metrics["frac_reward_zero_std"]
    assert ours.metrics["frac_reward_zero_std"] == (0.0 if scale == "batch" else 0.5)


def test_a_group_advantage_is_the_distance_from_the_mean_in_standard_deviations() -> None:
    rewards = [0.0, 1.0, 1.0, 3.0, 5.0]
    groups = ["a", "b", "a", "b", "b"]  # labels of any kind, in any order
    ours = group_advantages(rewards, groups).advantage
    for label in "ab":
        members = [i for i, name in enumerate(groups) if name == label]
        values = [rewards[i] for i in members]
        for i in members:
            expected = (rewards[i] - statistics.mean(values)) / (statistics.stdev(values) + 1e-4)
            assert ours[i] == pytest.approx(expected, rel=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rewards=st.lists(REWARD, min_size=1, max_size=12),
    data=st.data(),
    scale=st.sampled_from(["group", "batch", "none"]),
    aggregation=st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
)
def test_a_failure_changes_no_mean_and_no_standard_deviation(
    rewards: list[float], data: st.DataObject, scale: Any, aggregation: Any
) -> None:
    """The others' advantages are bit for bit those of a batch in which the failed never were."""
    count = len(rewards)
    groups = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    failed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    garbage = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300]))
    options: dict[str, Any] = {"scale_rewards": scale, "multi_objective_aggregation": aggregation}
    table = np.stack([np.where(failed, garbage, rewards), np.where(failed, 1.0, np.arange(count) % 2)], axis=1)

    ours = group_advantages(table, groups, failed=failed, **options)
    kept = ~failed
    alone = group_advantages(table[kept].reshape(-1, 2), np.array(groups)[kept], **options)
    assert ours.advantage[kept].tolist() == alone.advantage.tolist()
    assert (ours.advantage[failed] == 0).all()
    assert ours.metrics["frac_reward_excluded"] == failed.mean()
    assert np.isfinite(ours.advantage).all()
    shared = {name: value for name, value in ours.metrics.items() if name != "frac_reward_excluded"}
    assert shared == {name: value for name, value in alone.metrics.items() if name != "frac_reward_excluded"}

    one_out = leave_one_out(table[:, 0], groups, failed=failed)
    one_out_alone = leave_one_out(table[kept, 0], np.array(groups)[kept])
    assert one_out.advantage[kept].tolist() == one_out_alone.advantage.tolist()
    assert (one_out.advantage[failed] == 0).all()


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("equal", [0.1, -3.3, 1e6, 0.0])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(equal: float, scale: Any, aggregation: Any) -> None:
    """0.1 seven times has a mean that is not 0.1 in binary; only advantages of exactly 0 can be skipped."""
    rewards = [equal] * 7 + [0.0, 1.0]
    ours = group_advantages(rewards, [0] * 7 + [1, 1], scale_rewards=scale, multi_objective_aggregation=aggregation)
    assert ours.advantage[:7].tolist() == [0.0] * 7
    assert ours.advantage[8] > 0
    assert leave_one_out(rewards, [0] * 7 + [1, 1]).advantage.tolist() == [0.0] * 7 + [-1.0, 1.0]


def test_components_that_add_up_to_the_same_reward_have_advantages_of_exactly_zero() -> None:
    assert group_advantages([[0.1, 0.2], [0.3, 0.0], [0.0, 0.3]], [0, 0, 0]).advantage.tolist() == [0.0] * 3


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_only_valid_member_of_a_group_has_advantage_zero(scale: Any, aggregation: Any) -> None:
    ours = group_advantages(
        [5.0, math.nan, 0.0, 1.0],
        [0, 0, 1, 1],
        failed=[False, True, False, False],
        scale_rewards=scale,
        multi_objective_aggregation=aggregation,
    )
    assert ours.advantage[:2].tolist() == [0.0, 0.0]
    assert ours.advantage[2] < 0 < ours.advantage[3]
    assert leave_one_out([5.0, math.nan], [0, 0], failed=[False, True]).advantage.tolist() == [0.0, 0.0]


def test_a_batch_of_failures_has_no_reward_metrics_and_no_advantage() -> None:
    ours = group_advantages([math.nan, math.nan], [0, 0], failed=[True, True])
    assert ours.advantage.tolist() == [0.0, 0.0]
    assert ours.metrics == {"frac_reward_excluded": 1.0}
    assert group_advantages([], []).advantage.shape == (0,)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_leave_one_out_subtracts_the_mean_of_the_others(rewards: list[float]) -> None:
    ours = leave_one_out([*rewards, 100.0, 200.0], [0] * len(rewards) + [1, 1]).advantage
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        assert ours[i] == pytest.approx(reward - math.fsum(others) / len(others), rel=1e-5, abs=1e-5)
    assert ours[-2:].tolist() == [-100.0, 100.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [1.0, math.nan]}, "rewards: expected finite numbers; got nan for trajectory 1"),
        ({"rewards": [[1.0], [math.inf]]}, "rewards: expected finite numbers; got inf for trajectory 1"),
        ({"rewards": [[[1.0]], [[2.0]]]}, "rewards: expected shape"),
        ({"group": [0]}, "group: expected one label per trajectory"),
        ({"failed": [True]}, "failed: expected one flag per trajectory"),
        ({"weights": [1.0, 2.0]}, "weights: expected one finite number per reward component"),
        ({"weights": [math.nan]}, "weights: expected one finite number per reward component"),
        ({"names": ["a", "b"]}, "names: expected one per reward component"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"rewards": [1.0, 2.0], "group": [0, 0]}
    with pytest.raises(ValueError, match=message) as caught:
        group_advantages(**(good | arguments))
    assert "\n" not in str(caught.value)


def test_maxrl_gives_the_gradient_of_the_likelihood_of_success() -> None:
    """(1/N) Σ Aᵢ Sᵢ = (1/K) Σ_successes Sᵢ − (1/N) Σ Sᵢ, K successes of N (arXiv 2602.02710); nothing without any."""
    rewards = np.array([1.0, 0, 0, 1, 1, 0, 0, 0])
    group = np.repeat([0, 1], 4)
    found = group_advantages(rewards, group, scale_rewards="mean").advantage
    np.testing.assert_allclose(found, [1, -1, -1, 1, 3, -1, -1, -1])
    assert not group_advantages(np.zeros(4), np.zeros(4), scale_rewards="mean").advantage.any()
    with pytest.raises(ValueError, match="takes none below 0; got -1"):
        group_advantages([-1.0, 0.0], [0, 0], scale_rewards="mean")


@pytest.mark.parametrize("k", [2, 3])
def test_pass_at_k_advantages_are_those_of_all_subsets(k: int) -> None:
    """Every subset of k is a trial whose reward is 1 where it has a pass; a member's advantage is the mean over its own
    subsets of (reward − mean) / std over all subsets."""
    rng = np.random.default_rng(k)
    for _ in range(20):
        rewards = (rng.random(6) < 0.4).astype(float)
        subsets = list(itertools.combinations(range(6), k))
        trial = np.array([float(rewards[list(s)].any()) for s in subsets])
        found = pass_at_k_advantages(rewards, np.zeros(6), k).advantage
        if trial.std() == 0:
            assert not found.any()
            continue
        scored = (trial - trial.mean()) / trial.std()
        expected = [np.mean([scored[j] for j, s in enumerate(subsets) if i in s]) for i in range(6)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_pass_at_k_leaves_failures_out_and_groups_that_became_too_small() -> None:
    found = pass_at_k_advantages([1, 0, 0, 9, 1, 0], [0, 0, 0, 0, 1, 1], 2, failed=[0, 0, 0, 1, 0, 0])
    alone = pass_at_k_advantages([1, 0, 0], [0, 0, 0], 2)
    np.testing.assert_allclose(found.advantage, [*alone.advantage, 0, 0, 0])
    assert not pass_at_k_advantages([1, 0], [0, 0], 3).advantage.any()


def test_returns_are_discounted_from_each_token_on_and_whitened_ones_have_mean_0_and_std_1() -> None:
    np.testing.assert_allclose(discounted(np.array([1.0, 0.0, 4.0]), 0.5), [2.0, 2.0, 4.0])
    values = np.random.default_rng(0).normal(3, 2, 50)
    assert whitened(values).mean() == pytest.approx(0, abs=1e-12)
    assert whitened(values).std(ddof=1) == pytest.approx(1, rel=1e-6)
    assert not whitened(np.ones(1)).any()


@given(
    st.lists(st.tuples(REWARD, REWARD), min_size=1, max_size=12),
    REWARD,
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_generalised_advantages_are_the_sum_of_what_each_token_was_better_by(
    steps: list[tuple[float, float]], after: float, gamma: float, lam: float
) -> None:
    rewards, values = np.array([r for r, _ in steps]), np.array([v for _, v in steps])
    following = [*values[1:], after]
    better = [r + gamma * n - v for r, v, n in zip(rewards, values, following, strict=True)]
    expected = [sum((gamma * lam) ** (k - t) * better[k] for k in range(t, len(steps))) for t in range(len(steps))]
    found = gae(rewards, values, after, gamma=gamma, lam=lam)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    if lam == 1:  # then what the critic says of later tokens cancels out, but for what follows the last
        returns = [
            sum(gamma ** (k - t) * rewards[k] for k in range(t, len(steps))) + gamma ** (len(steps) - t) * after
            for t in range(len(steps))
        ]
        np.testing.assert_allclose(found + values, returns, rtol=1e-9, atol=1e-9)


def test_explained_variance_is_1_of_a_perfect_critic_0_of_a_constant_one_and_negative_of_a_worse_one() -> None:
    returns = np.array([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(3, 9.0), returns) == 0.0
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, np.ones(3)) == 0.0


def test_a_win_rate_counts_who_is_worse_and_half_of_who_is_equal() -> None:
    found, others = win_rates([1.0, 0.0, 1.0, 9.0, 5.0], [0, 0, 0, 0, 1], failed=[0, 0, 0, 1, 0])
    np.testing.assert_allclose(found, [0.75, 0.0, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(others, [2, 2, 2, 0, 0])
    assert win_rates(np.random.default_rng(0).random(7), np.zeros(7))[0].sum() == pytest.approx(3.5)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_a_weighted_win_rate_is_that_against_the_distribution_that_the_weights_make_of_the_sampled_one(
    mixture: float,
) -> None:
    """Exact: an answer's chance against pi^(1 - a) * ref^a over six answers, of which the group has many."""
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.full(6, 5.0)), rng.dirichlet(np.ones(6))
    rewards = rng.permutation(6).astype(float)
    answers = rng.choice(6, 3000, p=policy)
    weight = mixture * (np.log(reference) - np.log(policy))
    found, others = win_rates(rewards[answers], np.zeros(3000), log_weight=weight[answers] + 900)  # only ratios count
    target = policy ** (1 - mixture) * reference**mixture
    target /= target.sum()
    for answer in np.unique(answers):
        exact = float(target @ ((np.sign(rewards[answer] - rewards) + 1) / 2))
        assert found[answers == answer] == pytest.approx(exact, abs=0.05)
    assert (others == pytest.approx(2999.0)) == (mixture == 0.0)


def test_covariant_tokens_are_the_highest_or_drawn_from_those_within_bounds() -> None:
    rng = np.random.default_rng(0)
    advantage, logp = rng.normal(size=200), rng.normal(size=200)
    covariance = (advantage - advantage.mean()) * (logp - logp.mean())
    highest = covariant_tokens(advantage, logp, 0.05, bounds=None, seed=0)
    assert highest.sum() == 10
    assert covariance[highest].min() >= covariance[~highest].max()
    drawn = covariant_tokens(advantage, logp, 0.05, bounds=(0.5, 2.0), seed=0)
    assert drawn.sum() == 10
    assert ((covariance[drawn] > 0.5) & (covariance[drawn] < 2.0)).all()
    assert not covariant_tokens(advantage, logp, 0.05, bounds=(90.0, 99.0), seed=0).any()
