"""An engine without a network: it takes the time that a model of an accelerator says, and answers with fixed text.

`capacity` requests are computed at once, in the order they came; one of T tokens takes `prefill_s` and T steps of
`step_s` seconds. What it counts is what the benchmarks ask: for how long how many requests were being computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from quintain.arrays import Floats, Ints, as_floats, as_ints
from quintain.rollout.engines.base import Completion, EngineStats, Sampling, Weights
from quintain.trajectory import Finish, VersionSpan


class LatencyEngine:
    """Answers `words` (token ids, the last one ends the turn), cut to a seeded length of mean `tokens`."""

    def __init__(
        self, words: Sequence[int], *, capacity: int, step_s: float, prefill_s: float, tokens: int, max_length: int
    ) -> None:
        self._words, self._tokens, self._max_length = list(words), tokens, max_length
        self._step_s, self._prefill_s = step_s, prefill_s
        self.capacity = capacity
        self._room = asyncio.Semaphore(capacity)
        self._going = asyncio.Event()
        self._going.set()
        self._version = 0
        self.running = self._waiting = 0
        self._prompt_tokens = self._output_tokens = 0
        self._since = time.monotonic()
        self._slot_s = self._busy_s = 0.0

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def slot_s(self) -> float:
        """Integral over time of the number of requests being computed."""
        self._count(0)
        return self._slot_s

    async def generate(self, prompt_ids: Ints, sampling: Sampling, *, session: str) -> Completion:
        length = int(np.random.default_rng([sampling.seed % 2**64, 7]).integers(1, 2 * self._tokens))
        length = min(length, sampling.max_tokens)
        self._waiting += 1
        async with self._room:
            self._waiting -= 1
            await self._going.wait()
            self._count(1)
            try:
                await asyncio.sleep(self._prefill_s + length * self._step_s)
            finally:
                self._count(-1)
        output = [self._words[i % (len(self._words) - 1)] for i in range(length - 1)] + [self._words[-1]]
        self._prompt_tokens += len(prompt_ids)
        self._output_tokens += length
        spans = (VersionSpan(self._version, 0, length),)
        return Completion(as_ints(np.array(output)), as_floats(np.full(length, -1.0)), Finish.STOP, spans)

    async def score(self, rows: Sequence[Ints]) -> list[Floats]:
        return [as_floats(np.full(max(len(row) - 1, 0), -1.0)) for row in rows]

    async def pause(self) -> None:
        self._going.clear()

    async def prepare(self, weights: Weights) -> None:
        pass

    async def load(self, weights: Weights) -> None:
        self._version = weights.version

    async def resume(self) -> None:
        self._going.set()

    def kick(self) -> None:
        pass

    def stats(self) -> EngineStats:
        self._count(0)
        return EngineStats(
            self._version, self.running, self._waiting, self._prompt_tokens, self._output_tokens, self._busy_s
        )

    async def close(self) -> None:
        pass

    def _count(self, change: int) -> None:
        now = time.monotonic()
        self._slot_s += self.running * (now - self._since)
        self._busy_s += (now - self._since) if self.running else 0.0
        self._since = now
        self.running += change
