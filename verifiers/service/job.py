"""One job: the items of one request, and their verdicts as they are ready.

What always holds: each item has one verdict, written once; the same item is judged once; whatever the verifier does,
the job ends when it is told to, and what is not finished then has failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quintain.codec import to_json
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, failure_from
from quintain.slots import Slots
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item, Verifier
from quintain.verifiers.pure import YIELD_AFTER_S
from quintain.verifiers.service.cache import key_of
from quintain.verifiers.service.quotas import Admitted
from quintain.verifiers.service.wire import VerifyRequest

if TYPE_CHECKING:
    from quintain.verifiers.service.jobs import Jobs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batching:
    """How a verifier's items are handed to it: `batch` together, and `consumers` batches at a time."""

    batch: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A verdict, written."""

    outcome: Outcome
    text: str


class Job:
    """The verdicts on the items of one request."""

    def __init__(
        self,
        jobs: Jobs,
        asked: VerifyRequest,
        verifier: Verifier,
        slots: Slots[int],
        batching: Batching,
        prefix: bytes,
        admitted: Admitted,
        consumers: list[asyncio.Task[None]],
    ) -> None:
        self._jobs = jobs
        self._name = asked.verifier
        self._items = asked.items
        self._deadline_s = asked.deadline_s
        self._timeout_s = asked.timeout_s or jobs.limits.timeout_s
        self._verifier, self._slots, self._batching = verifier, slots, batching
        self._cached = verifier.cost < Cost.REMOTE  # a judge may say something else the next time
        self._prefix, self._admitted, self._consumers = prefix, admitted, consumers
        self._waiting: deque[tuple[bytes, list[int]]] = deque()  # items that are the same stand together
        self._ready: asyncio.Queue[tuple[int, Encoded] | Failure] = asyncio.Queue()

    @property
    def more(self) -> bool:
        """Whether another verdict is ready now."""
        return not self._ready.empty()

    def end(self, why: Failure) -> None:
        """Wait no longer: what is not finished has failed with `why`."""
        self._ready.put_nowait(why)

    async def all(self) -> list[Encoded]:
        """The verdicts in the order of the items."""
        found: dict[int, Encoded] = {}
        async with aclosing(self.verdicts()) as verdicts:
            async for index, encoded in verdicts:
                found[index] = encoded
        return [found[index] for index in range(len(self._items))]

    async def verdicts(self) -> AsyncGenerator[tuple[int, Encoded], None]:
        """Each item's number and verdict, as they are ready. Call it once."""
        missing = set(range(len(self._items)))
        late = Failure.of(FailureKind.TIMEOUT, Stage.VERIFY, f"the request's {self._timeout_s:g} s had passed")
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self.end, late)
        try:
            await self._begin()
            while missing:
                ready = await self._ready.get()
                if isinstance(ready, Failure):
                    for consumer in self._consumers:
                        consumer.cancel()
                    for index in sorted(missing):
                        yield self._given(index, _encoded(Verdict.unfinished(ready)))
                    return
                missing.discard(ready[0])
                yield self._given(*ready)
        finally:
            timer.cancel()

    async def _begin(self) -> None:
        groups: dict[bytes, list[int]] = {}
        turn = time.perf_counter()
        for index, item in enumerate(self._items):
            if time.perf_counter() - turn > YIELD_AFTER_S:
                await asyncio.sleep(0)
                turn = time.perf_counter()
            try:
                key = key_of(self._prefix, item) if self._cached else index.to_bytes(4, "big")
            except RecursionError:
                verdict = Verdict.failed(Outcome.BAD_REFERENCE, "the reference is nested too deeply")
                self._settle([index], _encoded(verdict))
                continue
            groups.setdefault(key, []).append(index)
        hits = 0
        for key, indices in groups.items():
            found = self._jobs.cache.get(key) if self._cached else None
            if found is None:
                self._waiting.append((key, indices))
            else:
                hits += len(indices)
                self._settle(indices, Encoded(*found))
        if self._cached:
            self._jobs.metrics.add("cache_hits_total", hits, verifier=self._name)
            self._jobs.metrics.add("cache_misses_total", len(self._items) - hits, verifier=self._name)
        consumers = min(self._batching.consumers, -(-len(self._waiting) // self._batching.batch))
        for _ in range(consumers):
            consumer = asyncio.ensure_future(self._consume())
            consumer.add_done_callback(self._consumer_ended)
            self._consumers.append(consumer)

    async def _consume(self) -> None:
        while self._waiting:
            slot = await self._slots.acquire(self._admitted.holder)
            try:
                batch = [self._waiting.popleft() for _ in range(min(self._batching.batch, len(self._waiting)))]
                if batch:
                    await self._judge(batch)
            finally:
                self._slots.release(slot)

    def _consumer_ended(self, consumer: asyncio.Task[None]) -> None:
        if (
            not consumer.cancelled() and (error := consumer.exception()) is not None
        ):  # a mistake of ours: nobody waits for it
            log.error("a consumer of the verifier %s broke", self._name, exc_info=error)
            self.end(failure_from(error, Stage.VERIFY))

    async def _judge(self, batch: Sequence[tuple[bytes, list[int]]]) -> None:
        self._jobs.running += len(batch)
        try:
            verdicts = await self._asked([self._items[indices[0]] for _, indices in batch])
        finally:
            self._jobs.running -= len(batch)
        for (key, indices), verdict in zip(batch, verdicts, strict=True):
            encoded = _encoded(verdict)
            if self._cached:
                self._jobs.cache.put(key, verdict, encoded.text)
            self._settle(indices, encoded)

    async def _asked(self, items: Sequence[Item]) -> list[Verdict]:
        try:
            verdicts = await self._verifier.verify(items, deadline_s=self._deadline_s)
            if len(verdicts) == len(items):
                return verdicts
            message = f"the verifier gave {len(verdicts)} verdicts on {len(items)} items"
            failure = Failure.of(FailureKind.INVALID, Stage.VERIFY, message)
        except (FailureError, QuintainError) as error:
            failure = failure_from(error, Stage.VERIFY)
        except Exception as error:  # the boundary: a verifier that raises is a failure of its items
            log.exception("the verifier %s raised", self._name)
            failure = failure_from(error, Stage.VERIFY)
        return [Verdict.unfinished(failure)] * len(items)

    def _settle(self, indices: Sequence[int], encoded: Encoded) -> None:
        for index in indices:
            self._ready.put_nowait((index, encoded))

    def _given(self, index: int, encoded: Encoded) -> tuple[int, Encoded]:
        self._admitted.give_back(1)
        self._jobs.metrics.add("verdicts_total", verifier=self._name, outcome=encoded.outcome)
        return index, encoded


def _encoded(verdict: Verdict) -> Encoded:
    try:
        return Encoded(verdict.outcome, to_json(verdict))
    except QuintainError as error:  # the detail is no JSON: the verdict cannot be told
        message = f"the verifier's detail is no JSON: {error}"
        return _encoded(Verdict.unfinished(Failure.of(FailureKind.INVALID, Stage.VERIFY, message)))
