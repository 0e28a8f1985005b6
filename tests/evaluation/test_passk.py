"""pass@k and intervals against counting by hand, published quantiles, and simulated evaluations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.evaluation.passk import Z, mean_estimate, pass_at_k, pass_estimate, t_quantile, wilson


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_correct_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_what_samples_cannot_say_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_the_estimate_is_unbiased_where_the_plug_in_one_is_not() -> None:
    rng, p, n, k = np.random.default_rng(0), 0.2, 6, 4
    correct = rng.binomial(n, p, 40_000)
    truth = 1 - (1 - p) ** k
    assert np.mean([pass_at_k(n, int(c), k) for c in correct]) == pytest.approx(truth, abs=0.005)
    assert np.mean(1 - (1 - correct / n) ** k) < truth - 0.03


def test_tasks_with_fewer_samples_than_k_are_left_out_of_that_k_and_counted() -> None:
    tasks = [(4, 2), (2, 2), (0, 0)]
    at_one, at_three = pass_estimate(tasks, 1), pass_estimate(tasks, 3)
    assert at_one is not None
    assert (at_one.value, at_one.tasks, at_one.samples) == (0.75, 2, 6)
    assert at_three is not None
    assert (at_three.value, at_three.tasks, at_three.low) == (1.0, 1, None)
    assert pass_estimate(tasks, 5) is None


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_one_right_or_wrong_sample_a_task_gives_wilsons_interval(rows: list[bool]) -> None:
    found = mean_estimate([[float(row)] for row in rows])
    assert found is not None
    n, p = len(rows), sum(rows) / len(rows)
    # the two solutions of |p - x| = z sqrt(x (1 - x) / n), which is how Wilson defined them
    roots = sorted(np.roots([1 + Z**2 / n, -(2 * p + Z**2 / n), p**2]).real)
    assert (found.low, found.high) == pytest.approx((max(0, roots[0]), min(1, roots[1])), abs=1e-6)
    again = pass_estimate([(1, int(row)) for row in rows], 1)
    assert again is not None
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=4), min_size=2, max_size=8))
def test_the_standard_error_is_the_clustered_one(tasks: list[list[float]]) -> None:
    found = mean_estimate(tasks)
    assert found is not None
    flat = [(place, value) for place, task in enumerate(tasks) for value in task]
    n, clusters = len(flat), len(tasks)
    mean = sum(value for _, value in flat) / n
    # Miller 2024: the pairs within a cluster, summed one by one
    pairs = sum((a - mean) * (b - mean) for (i, a), (j, b) in itertools.product(flat, flat) if i == j)
    expected = math.sqrt(max(pairs, 0.0) * clusters / (clusters - 1)) / n
    assert found.value == pytest.approx(mean, abs=1e-9)
    assert found.se == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3), min_size=2, max_size=12))
def test_intervals_hold_their_figure_agree_with_pass_at_one_and_learn_nothing_from_repeated_samples(
    tasks: list[list[float]],
) -> None:
    once = mean_estimate(tasks)
    assert once is not None
    assert once.low is not None
    assert once.high is not None
    assert 0 <= once.low <= once.value + 1e-12
    assert once.value - 1e-12 <= once.high <= 1
    assert once.high > once.low
    same = pass_estimate([(len(task), int(sum(task))) for task in tasks], 1)
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((once.value, once.low, once.high))
    twice = mean_estimate([task * 2 for task in tasks])
    assert twice is not None
    assert twice.se == pytest.approx(once.se)


def test_one_task_has_a_mean_and_no_interval_and_nothing_has_nothing() -> None:
    found = mean_estimate([[0.0, 1.0], []])
    assert found is not None
    assert (found.value, found.low, found.se, found.tasks) == (0.5, None, None, 1)
    assert mean_estimate([[], []]) is None
    assert mean_estimate([]) is None


@pytest.mark.parametrize(
    ("df", "published"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (100, 1.984)],
)
def test_quantiles_of_students_t_are_the_published_ones(df: int, published: float) -> None:
    assert t_quantile(df) == pytest.approx(published, rel=0.005)


def test_wilson_of_none_and_all_is_the_published_interval() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@pytest.mark.parametrize(("tasks", "samples", "spread"), [(30, 1, 0.0), (40, 8, 2.0), (25, 4, 50.0)])
def test_nineteen_of_twenty_intervals_hold_the_truth_when_samples_of_a_task_resemble_each_other(
    tasks: int, samples: int, spread: float
) -> None:
    """Tasks of different difficulty (Beta distributed): intervals must cover the mean over all tasks there could be."""
    rng, held, runs = np.random.default_rng(1), 0, 800
    for _ in range(runs):
        p = np.full(tasks, 0.3) if spread == 0 else rng.beta(0.3 * spread, 0.7 * spread, tasks)
        correct = rng.binomial(samples, p)
        found = pass_estimate([(samples, int(c)) for c in correct], 1)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.3 <= found.high
    assert 0.925 <= held / runs <= 0.985
