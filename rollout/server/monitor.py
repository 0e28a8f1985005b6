"""What the rollout server observes of itself while it runs: how late its event loop is, and what the engine did lately.

The loop's lag is how much later than asked a short sleep returns: what every request, timer and token waits as well.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable

from quintain.rollout.engines.base import EngineStats

log = logging.getLogger(__name__)

WINDOW_S = 60.0
"""Over which rates, fractions and quantiles are."""
LAG_EVERY_S = 0.05
ENGINE_EVERY_S = 1.0


class Quantiles:
    """Quantiles of the last `size` values."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """One more."""
        self._values.append(value)

    def at(self, q: float) -> float:
        """The smallest value that at least the share `q` of them does not exceed; 0 while there is none."""
        if not self._values:
            return 0.0
        return sorted(self._values)[max(0, math.ceil(q * len(self._values)) - 1)]


class EngineWindow:
    """Rates of an engine from samples of its counters over the last `window_s`."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, EngineStats]] = deque()  # each with its time

    def add(self, now: float, stats: EngineStats) -> None:
        """The counters at time `now`. Counters that went back (an engine that started again) begin a new window."""
        _, last = self._samples[-1] if self._samples else (now, stats)
        if stats.output_tokens < last.output_tokens or stats.busy_s < last.busy_s:
            self._samples.clear()
        self._samples.append((now, stats))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens a second."""
        return self._rate(lambda stats: stats.output_tokens)

    @property
    def idle_fraction(self) -> float:
        """The share of the time in which the engine computed nothing, 0 to 1; 1 while nothing is known."""
        return min(1.0, max(0.0, 1.0 - self._rate(lambda stats: stats.busy_s)))

    def _rate(self, read: Callable[[EngineStats], float]) -> float:
        if len(self._samples) < 2:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (read(last) - read(first)) / max(ended - began, 1e-9)


class Monitor:
    """Measures from `start` to `stop`; `sweep` is called every few seconds, for whoever has something to tidy."""

    def __init__(self, stats: Callable[[], EngineStats], sweep: Callable[[], Awaitable[None]]) -> None:
        self.lag = Quantiles(int(WINDOW_S / LAG_EVERY_S))
        self.engine = EngineWindow()
        self._stats, self._sweep = stats, sweep
        self._jobs: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._jobs = [asyncio.create_task(self._watch_lag()), asyncio.create_task(self._watch_engine())]

    async def stop(self) -> None:
        """End."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _watch_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_EVERY_S)
            self.lag.add(max(0.0, time.monotonic() - before - LAG_EVERY_S))

    async def _watch_engine(self) -> None:
        while True:
            try:
                self.engine.add(time.monotonic(), self._stats())
                await self._sweep()
            except Exception:  # the boundary: figures of a minute are not worth a server
                log.exception("the rollout server could not look after itself")
            await asyncio.sleep(ENGINE_EVERY_S)
