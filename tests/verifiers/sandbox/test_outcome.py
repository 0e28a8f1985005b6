"""Which status follows from what was seen."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.sandbox.interface import Limits, Status
from quintain.verifiers.sandbox.outcome import End, Observed, judge, status_of

LIMITS = Limits(wall_s=2, cpu_s=1)


@pytest.mark.parametrize(
    ("seen", "stderr", "status"),
    [
        (Observed(End.ITSELF, 0), b"", Status.OK),
        (Observed(End.ITSELF, 0), b"MemoryError", Status.OK),
        (Observed(End.ITSELF, 0, out_of_memory=True), b"", Status.OK),  # a child of it, whose loss it survived
        (Observed(End.ITSELF, 1), b"", Status.RUNTIME_ERROR),
        (Observed(End.ITSELF, -signal.SIGSEGV), b"", Status.RUNTIME_ERROR),
        (Observed(End.ITSELF, 1), b"Traceback ...\nMemoryError\n", Status.MEMORY_LIMIT),
        (Observed(End.ITSELF, 1), b"Traceback ...\nMemoryError: no\n", Status.MEMORY_LIMIT),
        (Observed(End.ITSELF, 1), b"MyMemoryError\n", Status.RUNTIME_ERROR),
        (Observed(End.ITSELF, -6), b"terminate called ... 'std::bad_alloc'\n", Status.MEMORY_LIMIT),
        (Observed(End.ITSELF, 1), b"MemoryError\n" + b"x" * 5000, Status.RUNTIME_ERROR),  # not its last words
        (Observed(End.ITSELF, -9, out_of_memory=True), b"", Status.MEMORY_LIMIT),
        (Observed(End.ITSELF, 137, out_of_memory=True), b"", Status.MEMORY_LIMIT),
        (Observed(End.ITSELF, -signal.SIGXCPU), b"", Status.TIMEOUT),
        (Observed(End.ITSELF, -9, cpu_s=1.2), b"", Status.TIMEOUT),
        (Observed(End.ITSELF, -9, cpu_s=0.2), b"", Status.RUNTIME_ERROR),
        (Observed(End.WALL, -9), b"", Status.TIMEOUT),
        (Observed(End.CPU, -9), b"", Status.TIMEOUT),
        (Observed(End.MEMORY, -9), b"", Status.MEMORY_LIMIT),
        (Observed(End.OUTPUT, 0), b"", Status.OUTPUT_LIMIT),
        (Observed(End.KILLED, -9), b"", Status.RUNTIME_ERROR),
    ],
)
def test_the_status_follows_from_what_was_seen(seen: Observed, stderr: bytes, status: Status) -> None:
    assert status_of(seen, LIMITS, stderr)[0] is status


def test_what_broke_is_a_failure_and_nothing_else_is() -> None:
    done = judge(Observed(End.BROKEN, trouble="no\nmount"), LIMITS, b"out", b"err")
    assert done.status is Status.INFRA_ERROR
    assert done.failure is not None
    assert (done.failure.message, done.failure.stage, done.exit) == ("no mount", "sandbox", None)
    assert judge(Observed(End.WALL, -9), LIMITS, b"", b"").failure is None


@given(
    st.sampled_from([end for end in End if end is not End.BROKEN]),
    st.integers(-64, 255) | st.none(),
    st.booleans(),
    st.floats(0, 100),
    st.binary(max_size=100),
)
def test_only_exit_code_0_within_all_limits_is_success(
    end: End, code: int | None, oom: bool, cpu_s: float, stderr: bytes
) -> None:
    status, reason = status_of(Observed(end, code, oom, cpu_s=cpu_s), LIMITS, stderr)
    assert (status is Status.OK) == (end is End.ITSELF and code == 0)
    assert status is not Status.INFRA_ERROR
    assert bool(reason) == (status is not Status.OK)
