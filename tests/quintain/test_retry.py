"""A client's patience, without a server and without a clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.calling.retry import MAX_WAIT_S, Retry, RetryPolicy
from quintain.failure import Failure, FailureError, FailureKind, Stage

DOWN = Failure.of(FailureKind.UNREACHABLE, Stage.STEP, "down")
FULL = Failure.of(FailureKind.OVERLOADED, Stage.RESET, "full")


def patience(policy: RetryPolicy, seed: int, event) -> float:
    """How long a client goes on when every try ends in `event`."""
    retry, now = Retry(policy, random.Random(seed), 0.0), 0.0
    try:
        while True:
            now += event(retry, now)
    except FailureError:
        return now


@given(st.integers(), st.floats(0.1, 100), st.floats(0.1, 100))
def test_a_silent_server_is_given_up_within_the_patience(seed, patience_s, timeout_s):
    spent = patience(RetryPolicy(timeout_s, patience_s), seed, lambda retry, now: retry.silent(DOWN, now))
    assert spent <= min(patience_s, timeout_s)
    assert spent >= min(patience_s, timeout_s) - 1.5 * MAX_WAIT_S


@given(st.integers(), st.floats(0.1, 100), st.floats(0, 3))
def test_a_full_server_is_asked_until_the_time_is_up_and_not_sooner_than_it_says(seed, timeout_s, retry_after_s):
    waits = []

    def refused(retry: Retry, now: float) -> float:
        waits.append(retry.refused(FULL, now, retry_after_s))
        return waits[-1]

    assert patience(RetryPolicy(timeout_s, patience_s=0.1), seed, refused) <= timeout_s
    assert all(wait >= retry_after_s for wait in waits)


def test_an_answer_renews_the_patience_with_a_server_that_was_silent():
    retry = Retry(RetryPolicy(timeout_s=100, patience_s=10), random.Random(0), 0.0)
    retry.silent(DOWN, 0.0)
    retry.refused(FULL, 9.0)
    retry.silent(DOWN, 11.0)
    with pytest.raises(FailureError, match="down"):
        retry.silent(DOWN, 21.0)


def test_clients_that_were_refused_together_do_not_come_back_together():
    waits = {Retry(RetryPolicy(), random.Random(seed), 0.0).refused(FULL, 0.0, 1.0) for seed in range(50)}
    assert len(waits) == 50
