"""Processes side by side share the processors that pools are sized by."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.cores import CORES_ENV, cores, share_of_cores


def test_a_process_alone_counts_on_every_processor_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CORES_ENV, raising=False)
    assert cores() == len(os.sched_getaffinity(0))


@given(machine=st.integers(1, 512), processes=st.integers(1, 600))
def test_shares_add_up_to_no_more_than_the_machine_or_are_one_each(machine: int, processes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CORES_ENV, str(machine))
        share = int(share_of_cores(processes)[CORES_ENV])
    assert share == 1 or 1 <= share * processes <= machine
    assert (share + 1) * processes > machine
