"""From rewards to advantages: who did better than the others of the group, and by how much.

Invariants: a failed trajectory enters no mean, no standard deviation and no metric, its advantage is 0, and its
share is a metric; no advantage is ever NaN; where all of a group's rewards are equal, and where a group has one
member left, its advantages are exactly 0 (so that the trainer may skip those rows); computed in float64, given as
float32. "Batch" is whatever is passed: pass all trajectories of an optimiser step, from all ranks, at once.

Names as in TRL 1.16. Standard deviations are Bessel-corrected. N trajectories, K reward components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quintain.rollout.rules.groups import ROUNDING

ScaleRewards = Literal["group", "batch", "none", "mean"]
MultiObjectiveAggregation = Literal["sum_then_normalize", "normalize_then_sum"]

STD_EPSILON = 1e-4
"""Added to every standard deviation before dividing by it."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Advantages:
    """`advantage` [N] float32, 0 of those that failed; `metrics`: to log."""

    advantage: NDArray[np.float32]
    metrics: dict[str, float]


def group_advantages(
    rewards: ArrayLike,
    group: ArrayLike,
    *,
    failed: ArrayLike | None = None,
    weights: Sequence[float] | None = None,
    scale_rewards: ScaleRewards = "group",
    multi_objective_aggregation: MultiObjectiveAggregation = "sum_then_normalize",
    names: Sequence[str] | None = None,
) -> Advantages:
    """Group-relative advantages (GRPO, arXiv 2402.03300; Dr. GRPO, 2503.20783; GDPO, 2601.05242).

    rewards: [N] or [N, K]. group: [N], any labels. failed: [N] bool; the rewards of a failed trajectory are
    not looked at. weights: [K], default 1 each. names: [K], for the metrics `rewards/{name}/mean` and `/std`.

    `sum_then_normalize`: R is the weighted sum; A = (R − mean of the group) / (std + 1e-4), the std being the
    group's or the batch's; no division at scale_rewards none; at mean A = (R − mean) / mean, 0 where the mean is 0
    (MaxRL, arXiv 2602.02710). `normalize_then_sum`: each component is
    z-scored within the group, the weighted sum of those over the batch; `scale_rewards` plays no part (as in
    TRL).

    Metrics: `reward`, `reward_std` (of the weighted sum, over the batch), `frac_reward_zero_std` (the share
    of trajectories whose std, of group or batch as used above, is 0; the group's at none),
    `frac_reward_excluded`. A batch with nothing but failures has the last one only.

    Raises ValueError, one line, on wrong shapes and rewards that are not finite.
    """
    table, labels, valid = _checked(rewards, group, failed)
    scale = _checked_weights(weights, table.shape[1])
    if names is not None and len(names) != table.shape[1]:
        raise ValueError(f"names: expected one per reward component ({table.shape[1]}); got {len(names)}")

    total = table @ scale
    whole = np.zeros_like(labels)
    if multi_objective_aggregation == "sum_then_normalize":
        mean, group_std = _moments(total, labels, valid)
        std = group_std if scale_rewards != "batch" else _moments(total, whole, valid)[1]
        advantage = total - mean
        if scale_rewards == "mean":
            if (total < 0).any():
                raise ValueError(f"rewards: scale_rewards mean takes none below 0; got {total.min():g}")
            advantage = advantage / np.where(mean > 0, mean, 1.0)
        elif scale_rewards != "none":
            advantage = advantage / (std + STD_EPSILON)
        no_spread = group_std == 0
    else:
        scores = np.stack([_z_scores(component, labels, valid) for component in table.T], axis=1)
        summed = scores @ scale
        advantage, std = _z_scores(summed, whole, valid), _moments(summed, whole, valid)[1]
        no_spread = (scores == 0).all(axis=1)
    return _result(np.where(no_spread, 0.0, advantage), std, total, table, valid, names)


def leave_one_out(
    rewards: ArrayLike,
    group: ArrayLike,
    *,
    failed: ArrayLike | None = None,
    weights: Sequence[float] | None = None,
    penalty: ArrayLike = 0.0,
    clip: tuple[float, float] | None = None,
    normalize: bool = False,
    names: Sequence[str] | None = None,
) -> Advantages:
    """RLOO: R minus the mean of the group's *other* members (arXiv 2402.14740).

    R is the weighted sum of the rewards held within `clip`, minus `penalty` [N] (a KL). normalize: centre and divide by
    the std + 1e-4 over the batch. Otherwise as `group_advantages`.
    """
    table, labels, valid = _checked(rewards, group, failed)
    total = table @ _checked_weights(weights, table.shape[1])
    held = total if clip is None else total.clip(*clip)
    score = held - np.where(valid, penalty, 0.0)
    mean, std = _moments(score, labels, valid)
    members = np.bincount(labels, weights=valid)[labels] if len(labels) else np.zeros(0)
    others_below = (score - mean) * members / np.maximum(members - 1, 1)  # = R − mean of the others
    advantage = np.where(std > 0, others_below, 0.0)
    if normalize:
        whole, spread = _moments(advantage, np.zeros_like(labels), valid)
        advantage = np.where(spread > 0, (advantage - whole) / (spread + STD_EPSILON), 0.0)
    return _result(advantage, std, total, table, valid, names)


def pass_at_k_advantages(
    rewards: ArrayLike, group: ArrayLike, k: int, *, failed: ArrayLike | None = None, passes: float = 0.5
) -> Advantages:
    """What each member adds to the chance that k of its group have a pass (pass@k training, arXiv 2508.10751, eq. 9).

    rewards [N], a pass from `passes` on. Over all subsets of k of the n members, with w that do not pass:
    R = 1 − C(w, k)/C(n, k), σ = √(R(1 − R)); (1 − R)/σ for a pass, (1 − R − C(w−1, k−1)/C(n−1, k−1))/σ for the others;
    0 where σ is 0 or fewer than k members are left.
    """
    table, labels, valid = _checked(rewards, group, failed)
    total = table.sum(1)
    passed = (total >= passes) & valid
    count = int(labels.max(initial=-1)) + 1
    members = np.bincount(labels, weights=valid, minlength=count).astype(int)
    wrong = members - np.bincount(labels, weights=passed, minlength=count).astype(int)
    gains = [_pass_at_k(n, w, k) for n, w in zip(members.tolist(), wrong.tolist(), strict=True)]
    right, other = np.array([gain[0] for gain in gains]), np.array([gain[1] for gain in gains])
    advantage = np.where(passed, right[labels], other[labels]) if count else np.zeros(0)
    return _result(advantage, _moments(total, labels, valid)[1], total, table, valid, None)


def _pass_at_k(members: int, wrong: int, k: int) -> tuple[float, float]:
    """The advantage of a pass, and of what is none."""
    if members < k:
        return 0.0, 0.0
    mean = 1 - comb(wrong, k) / comb(members, k)
    spread = (mean * (1 - mean)) ** 0.5
    if spread == 0:
        return 0.0, 0.0
    others = comb(wrong - 1, k - 1) / comb(members - 1, k - 1) if wrong else 0.0
    return (1 - mean) / spread, (1 - mean - others) / spread


def covariant_tokens(
    advantage: Floats, logp: Floats, ratio: float, *, bounds: tuple[float, float] | None, seed: int
) -> Bools:
    """[T]: the tokens that cost the most entropy (arXiv 2505.22617), a share `ratio` of all, at least one.

    How much is (A − mean A)·(ℓ − mean ℓ). With `bounds` (Clip-Cov) they are drawn from those strictly within; without
    (KL-Cov) they are the highest.
    """
    covariance = (advantage - advantage.mean()) * (logp - logp.mean()) if len(logp) else np.zeros(0)
    chosen = np.zeros(len(covariance), dtype=np.bool_)
    count = max(1, int(ratio * len(covariance)))
    if bounds is None:
        chosen[np.argsort(-covariance, kind="stable")[:count]] = True
    else:
        within = np.flatnonzero((covariance > bounds[0]) & (covariance < bounds[1]))
        chosen[np.random.default_rng(seed).permutation(within)[:count]] = True
    return chosen


def win_rates(
    rewards: ArrayLike, group: ArrayLike, *, failed: ArrayLike | None = None, log_weight: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """[N]: the share of the group's other members with a lower reward, those with the same one count half.

    `log_weight` [N] says how much each counts as somebody to win against, all alike where it is not given. 1/2 for the
    failed, and where nobody else is left. And [N]: how many others that comes to, (Σw)² / Σw².
    """
    table, labels, valid = _checked(rewards, group, failed)
    reward, count = table[:, 0], len(labels)
    weight = np.zeros(count) if log_weight is None else np.asarray(log_weight, np.float64)
    other = (labels[:, None] == labels) & valid[:, None] & valid & ~np.eye(count, dtype=bool)
    weights = np.where(other, weight, -np.inf)
    largest = weights.max(1, initial=-np.inf, keepdims=True)
    share = np.exp(weights - np.where(np.isfinite(largest), largest, 0.0))
    better = np.where(other, share * (np.sign(reward[:, None] - reward) + 1) / 2, 0.0).sum(1)
    whole = np.maximum(share.sum(1), 1.0)
    rates: Floats = np.where(other.any(1), better / whole, 0.5)
    return rates, whole**2 / np.maximum((share**2).sum(1), 1.0) * other.any(1)


def discounted(rewards: Floats, gamma: float) -> Floats:
    """[T]: the sum of each token's reward and those after it, γ for each token on."""
    returns, ahead = np.empty(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        returns[t] = ahead = rewards[t] + gamma * ahead
    return returns


def whitened(values: Floats) -> Floats:
    """(x − mean) / √(var + 1e-8), the variance Bessel-corrected; of one value or none: 0."""
    if len(values) < 2:
        return np.zeros(len(values))
    scaled: Floats = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    return scaled


def gae(rewards: Floats, values: Floats, after: float, *, gamma: float, lam: float) -> Floats:
    """[T]: generalised advantage estimates of an episode's policy tokens, in order (arXiv 1506.02438, eq. 16).

    δ_t = r_t + γV_{t+1} − V_t, A_t = δ_t + γλA_{t+1}. values [T] are of the states before each token; what the
    environment wrote in between is part of the next state, and no step. after: the value of what follows the last
    token, 0 where the episode ended there.
    """
    advantages, ahead, following = np.empty(len(rewards)), 0.0, after
    for t in range(len(rewards) - 1, -1, -1):
        advantages[t] = ahead = rewards[t] + gamma * following - values[t] + gamma * lam * ahead
        following = values[t]
    return advantages


def explained_variance(values: Floats, returns: Floats) -> float:
    """1 − var(returns − values) / var(returns): 1 is perfect, 0 no better than a constant, below 0 worse than one; 0
    where there is nothing to explain."""
    spread = float(returns.var()) if len(returns) else 0.0
    return 1.0 - float((returns - values).var()) / spread if spread > 0 else 0.0


def _checked(rewards: ArrayLike, group: ArrayLike, failed: ArrayLike | None) -> tuple[Floats, NDArray[np.intp], Bools]:
    """Rewards [N, K] with zeros where failed, groups numbered from 0 [N], and who did not fail [N]."""
    table = np.array(rewards, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"rewards: expected shape [N] or [N, K]; got {np.shape(rewards)}")
    count = len(table)
    names: NDArray[Any] = np.asarray(group)
    if names.shape != (count,):
        raise ValueError(f"group: expected one label per trajectory ({count}); got shape {names.shape}")
    valid = np.ones(count, dtype=bool) if failed is None else ~np.asarray(failed, dtype=bool)
    if valid.shape != (count,):
        raise ValueError(f"failed: expected one flag per trajectory ({count}); got shape {valid.shape}")
    table[~valid] = 0.0
    if not np.isfinite(table).all():
        row, component = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(
            f"rewards: expected finite numbers; got {table[row, component]} for trajectory {row}, component "
            f"{component}; mark the trajectory as failed"
        )
    return table, np.unique(names, return_inverse=True)[1].reshape(count), valid


def _checked_weights(weights: Sequence[float] | None, components: int) -> Floats:
    scale = np.ones(components) if weights is None else np.asarray(weights, dtype=np.float64)
    if scale.shape != (components,) or not np.isfinite(scale).all():
        raise ValueError(f"weights: expected one finite number per reward component ({components}); got {weights}")
    return scale


def _moments(values: Floats, labels: NDArray[np.intp], valid: Bools) -> tuple[Floats, Floats]:
    """Each member's group mean and Bessel-corrected std, [N] both, over the valid members of the group.

    The std is exactly 0 for fewer than two valid members and for values that are equal but for rounding.
    """
    groups = int(labels.max(initial=-1)) + 1
    count = np.bincount(labels, weights=valid, minlength=groups)
    mean = np.bincount(labels, weights=np.where(valid, values, 0.0), minlength=groups) / np.maximum(count, 1)
    deviation = np.where(valid, values - mean[labels], 0.0)
    variance = np.bincount(labels, weights=deviation**2, minlength=groups) / np.maximum(count - 1, 1)
    largest, spread = np.zeros(groups), np.zeros(groups)
    np.maximum.at(largest, labels, np.where(valid, np.abs(values), 0.0))
    np.maximum.at(spread, labels, np.abs(deviation))
    std = np.where(spread <= ROUNDING * largest, 0.0, np.sqrt(variance))
    return mean[labels], std[labels]


def _z_scores(values: Floats, labels: NDArray[np.intp], valid: Bools) -> Floats:
    """(value − mean) / (std + 1e-4) within each group; exactly 0 where the std is 0."""
    mean, std = _moments(values, labels, valid)
    return np.where(std > 0, (values - mean) / (std + STD_EPSILON), 0.0)


def _result(
    advantage: Floats, std: Floats, total: Floats, table: Floats, valid: Bools, names: Sequence[str] | None
) -> Advantages:
    """Zero the failed, and describe the rewards of the others: `total` [N] weighted, `table` [N, K] raw."""
    metrics = {"frac_reward_excluded": float(np.mean(~valid)) if len(valid) else 0.0}
    if valid.any():
        described = {"reward": total} | {
            f"rewards/{name}": component for name, component in zip(names or (), table.T, strict=False)
        }
        whole = np.zeros(len(total), dtype=np.intp)
        for name, values in described.items():
            mean, spread = _moments(values, whole, valid)
            metrics[name if name == "reward" else f"{name}/mean"] = float(mean[0])
            metrics["reward_std" if name == "reward" else f"{name}/std"] = float(spread[0])
        metrics["frac_reward_zero_std"] = float(np.mean(std[valid] == 0))
    return Advantages(np.where(valid, advantage, 0.0).astype(np.float32), metrics)
