"""What the rollout server says of itself is what happened."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.rollout.engines.base import EngineStats
from quintain.rollout.server.monitor import EngineWindow, Monitor, Quantiles


def stats(output_tokens: int, busy_s: float) -> EngineStats:
    return EngineStats(0, 0, 0, 0, output_tokens, busy_s)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_covers_its_share(values: list[float], q: float) -> None:
    quantiles = Quantiles(100)
    for value in values:
        quantiles.add(value)
    found = quantiles.at(q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values) - 1e-9
    assert sum(value < found for value in values) < q * len(values) + 1e-9


def test_only_the_last_values_count() -> None:
    quantiles = Quantiles(3)
    assert quantiles.at(0.99) == 0.0
    for value in (9.0, 1.0, 2.0, 3.0):
        quantiles.add(value)
    assert quantiles.at(1.0) == 3.0


def test_rates_are_those_of_the_window_and_not_of_the_whole_life() -> None:
    window = EngineWindow(window_s=10)
    assert (window.tokens_per_s, window.idle_fraction) == (0.0, 1.0)
    for second in range(101):
        busy = min(second, 90) + max(0, second - 90) * 0.5  # busy all the time, and half of it in the last ten seconds
        window.add(float(second), stats(100 * second, busy))
    assert window.tokens_per_s == pytest.approx(100)
    assert window.idle_fraction == pytest.approx(0.5)


def test_an_engine_that_started_again_begins_a_new_window() -> None:
    window = EngineWindow()
    window.add(0.0, stats(1000, 10.0))
    window.add(1.0, stats(10, 0.1))
    window.add(2.0, stats(30, 0.6))
    assert window.tokens_per_s == pytest.approx(20)
    assert window.idle_fraction == pytest.approx(0.5)


def block() -> None:
    """What no code in an event loop may do."""
    time.sleep(0.3)


async def test_a_blocked_event_loop_shows_as_lag() -> None:
    swept = asyncio.Queue[None]()

    async def sweep() -> None:
        swept.put_nowait(None)

    monitor = Monitor(lambda: stats(0, 0.0), sweep)
    monitor.start()
    await swept.get()
    block()
    await swept.get()  # a second later
    await monitor.stop()
    assert 0.1 < monitor.lag.at(1.0) < 5


async def test_a_monitor_goes_on_when_what_it_looks_at_breaks() -> None:
    calls = 0
    again = asyncio.Event()

    async def sweep() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        raise RuntimeError("broken")

    monitor = Monitor(lambda: stats(0, 0.0), sweep)
    monitor.start()
    async with asyncio.timeout(10):
        await again.wait()
    await monitor.stop()
