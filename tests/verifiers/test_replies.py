"""What a worker's reply or death says about its item."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from quintain.verdict import Outcome
from quintain.verifiers.workers.replies import how_it_died, verdict_of_death, verdict_of_reply


@pytest.mark.parametrize("status", [0, 1, 255, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS])
def test_a_death_by_its_own_hand_is_a_crash(status: int) -> None:
    verdict = verdict_of_death(status, 5.0)
    assert verdict is not None
    assert verdict.outcome is Outcome.CRASHED


@pytest.mark.parametrize("status", [None, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -99])
def test_a_death_that_may_have_come_from_outside_is_not_held_against_the_item(status: int | None) -> None:
    assert verdict_of_death(status, 5.0) is None
    assert "died" in how_it_died(status)


def test_used_up_processor_time_is_a_timeout() -> None:
    verdict = verdict_of_death(-signal.SIGXCPU, 5.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.elapsed_s) == (Outcome.TIMEOUT, 5.0)


def test_a_worker_whose_pool_is_stopped_ends_by_itself() -> None:
    program = "from quintain.verifiers.workers.zygote import limit_cpu\nlimit_cpu(0.1)\nwhile True: pass"
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert ended.returncode == -signal.SIGXCPU


def test_a_reply_without_a_score_gets_the_one_of_its_outcome() -> None:
    scores = {
        outcome: verdict_of_reply({"elapsed_s": 0.1, "verdict": {"outcome": outcome}}).score
        for outcome in ("correct", "wrong", "unparsable", "timeout", "crashed", "bad_reference")
    }
    assert scores == {
        "correct": 1.0,
        "wrong": 0.0,
        "unparsable": 0.0,
        "timeout": None,
        "crashed": None,
        "bad_reference": None,
    }


def test_a_detail_that_is_no_mapping_is_a_crash_and_no_exception() -> None:
    verdict = verdict_of_reply({"elapsed_s": 0.1, "verdict": {"outcome": "wrong", "detail": 5}})
    assert verdict.outcome is Outcome.CRASHED
    verdict = verdict_of_reply({"elapsed_s": 0.1, "verdict": {"outcome": "timeout", "detail": {"message": 5}}})
    assert verdict.outcome is Outcome.CRASHED
