"""Judges the items of requests: one job for each request, many jobs at a time.

What always holds:
- a job gives one verdict for each of its items, and ends within its time whatever the verifier does: what is not
  finished by then, or when the server stops, is a failure that may be retried, never a score;
- items of one verifier are judged a bounded number at a time, and the holders of tokens take turns;
- a job that is left, because its client went away, frees its part of the queue at once;
- the same item is judged once in a job, and not again while its verdict is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from quintain.cores import cores
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import refused
from quintain.slots import Slots
from quintain.verifiers.base import Cost
from quintain.verifiers.service.cache import VerdictCache, key_prefix
from quintain.verifiers.service.job import Batching, Job
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.policy import AccessPolicy
from quintain.verifiers.service.quotas import Admitted, Quotas
from quintain.verifiers.service.wire import MAX_ITEMS, VerifyRequest
from quintain.verifiers.shared import Kept, Verifiers

LATENCY_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def batching_of(cost: Cost) -> Batching:
    """How items are handed to verifiers of that cost, on the processors that this process may count on.

    What may take long is handed over one by one, so that each verdict is there when it is ready, and only a few
    more at a time than can run, so that turns between clients are taken here and not lost in a queue below.
    """
    count = cores()
    return {
        Cost.PURE: Batching(batch=64, consumers=2),
        Cost.WORKER: Batching(batch=1, consumers=4 * count),
        Cost.SANDBOX: Batching(batch=1, consumers=2 * count + 2),
        Cost.MODEL: Batching(batch=64, consumers=2),
        Cost.REMOTE: Batching(batch=1, consumers=64),
    }[cost]


class Jobs:
    """All jobs of one server. `policy` says what may be asked for; `share` is one token's part of the queue."""

    def __init__(
        self, policy: AccessPolicy, limits: ServiceLimits, metrics: Metrics, *, share: int | None = None
    ) -> None:
        self.limits, self.metrics = limits, metrics
        self.cache = VerdictCache(limits.cache_bytes)
        self.quotas = Quotas(
            limits.queue_items, limits.concurrent_items or share or limits.queue_items, limits.items_per_minute
        )
        self.running = 0
        self._policy = policy
        self._verifiers = Verifiers(limits.verifiers)
        self._slots_of: dict[Kept, Slots[int]] = {}
        self._live: set[Job] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        metrics.counter("verdicts_total", "Verdicts given, by verifier and outcome.")
        metrics.counter("items_total", "Items asked for, by verifier and token.")
        metrics.counter("cache_hits_total", "Items whose verdict was remembered, by verifier.")
        metrics.counter("cache_misses_total", "Items whose verdict was not remembered, by verifier.")
        metrics.histogram("verify_seconds", "Time to judge a request, by verifier.", LATENCY_BOUNDS_S)
        metrics.gauge("items_running", "Items being judged.", lambda: self.running)
        metrics.gauge("items_queued", "Items that wait to be judged.", lambda: self.quotas.inside - self.running)
        metrics.gauge("cache_bytes", "Bytes of remembered verdicts.", lambda: self.cache.bytes)
        metrics.gauge("cache_entries", "Remembered verdicts.", lambda: len(self.cache))

    @asynccontextmanager
    async def job(self, asked: VerifyRequest, holder: str) -> AsyncIterator[Job]:
        """A job for what `holder` has `asked`. Raises Refused where it cannot begin; leaving it ends it."""
        _check(asked, self.limits)
        began = time.monotonic()
        with self.admitted(holder, len(asked.items)) as admitted:
            try:
                options = self._policy.options(asked.verifier, asked.options, self.limits)
                kept = self._verifiers.take(asked.verifier, options)
                try:
                    prefix = key_prefix(asked.verifier, kept.verifier.version, options)
                except QuintainError:
                    self._verifiers.give_back(kept)
                    raise
            except QuintainError as error:
                raise refused(str(error), Stage.VERIFY, status=400) from None
            consumers: list[asyncio.Task[None]] = []
            try:
                batching = batching_of(kept.verifier.cost)
                job = Job(self, asked, kept.verifier, self._slots(kept), batching, prefix, admitted, consumers)
                self._live.add(job)
                self.metrics.add("items_total", len(asked.items), verifier=asked.verifier, holder=holder)
                try:
                    yield job
                finally:
                    self._live.discard(job)
            finally:
                for consumer in consumers:
                    consumer.cancel()
                leaving = asyncio.ensure_future(self._leave(kept, consumers))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
        self.metrics.observe("verify_seconds", time.monotonic() - began, verifier=asked.verifier)

    @contextmanager
    def admitted(self, holder: str, count: int) -> Iterator[Admitted]:
        """Room in the service for `count` items of `holder`, until they are given back or left. Raises Refused."""
        self.quotas.take(holder, count, time.monotonic())
        admitted = Admitted(self.quotas, holder, count)
        try:
            yield admitted
        finally:
            admitted.give_back(admitted.count)

    def abandon(self) -> None:
        """End all jobs now: what is not finished is a failure."""
        for job in self._live:
            job.end(Failure.of(FailureKind.UNREACHABLE, Stage.VERIFY, "the server is stopping"))

    async def close(self) -> None:
        """Close the verifiers."""
        self.abandon()
        await self._verifiers.close()
        await asyncio.gather(*self._leaving)

    async def _leave(self, kept: Kept, consumers: Sequence[asyncio.Task[None]]) -> None:
        """Let go of the verifier once it has let go of the items: that must not keep the client waiting."""
        if consumers:
            await asyncio.wait(consumers)
        self._verifiers.give_back(kept)
        if not kept.users:
            self._slots_of.pop(kept, None)  # nobody waits in it

    def _slots(self, kept: Kept) -> Slots[int]:
        """The line in which the jobs of a verifier wait for their turns."""
        if kept not in self._slots_of:
            self._slots_of[kept] = Slots(range(batching_of(kept.verifier.cost).consumers))
        return self._slots_of[kept]


def _check(asked: VerifyRequest, limits: ServiceLimits) -> None:
    if len(asked.items) > MAX_ITEMS:
        message = f"at most {MAX_ITEMS} items at a time, not {len(asked.items)}: send several batches"
        raise refused(message, Stage.VERIFY, FailureKind.TOO_LONG)
    given = {"deadline_s": (asked.deadline_s, limits.deadline_s), "timeout_s": (asked.timeout_s, limits.timeout_s)}
    for name, (value, most) in given.items():
        if isinstance(value, int | float) and not 0 < value <= most:
            raise refused(f"{name} must be more than 0 and at most {most:g}, not {value}", Stage.VERIFY, status=400)
