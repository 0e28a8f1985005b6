"""A pool of killable worker processes that check items, each within its own deadline.

What always holds:
- `run` gives one verdict for each item, in order, whatever the items do to the workers;
- an item whose deadline passes gets `timeout`, one that ends its worker or raises gets `crashed`, and nobody
  else does: items that waited behind it in the same worker are checked by another;
- a death that may have come from outside (SIGKILL, the machine's memory, the zygote) is not held against the
  item the first time: it is tried once more;
- concurrent batches take turns; a cancelled `run` frees the workers it held;
- after `close`, and after the death of this process by whatever means, no worker is left.

The check is a function named as `module:function`; it takes the item, a dict, and gives `{"outcome": Outcome,
"score": float, "message": str, "detail": dict}`, of which only the outcome is always needed. A pool starts at
its first use and belongs to the event loop of that use.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from quintain.closing import AsyncClosing
from quintain.cores import cores
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.slots import FairQueue
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.workers.channel import SocketChannel
from quintain.verifiers.workers.handle import WorkerSpec, ZygoteHandle
from quintain.verifiers.workers.replies import how_it_died, verdict_of_death, verdict_of_reply
from quintain.verifiers.workers.wire import encode

START_GRACE_S: Final = 30.0
"""How long a forked worker may take to say that it is there."""
ABANDONED_GRACE_S: Final = 0.2
"""How long an item of a cancelled batch may go on: most end by themselves, cheaper than a kill."""
ITEMS_PER_WORKER: Final = 5_000
"""A worker is replaced after so many items: the parsers' caches grow with every new shape of input."""
MAX_CHUNK: Final = 8
DEFAULT_MEMORY_BYTES: Final = 1 << 30


@dataclass(eq=False, slots=True)
class _Batch:
    """One call of `run`."""

    frames: list[bytes]
    deadline_s: float
    done: asyncio.Future[list[Verdict]]
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)

    def settle(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        if len(self.verdicts) == len(self.frames) and not self.done.done():
            self.done.set_result([self.verdicts[i] for i in range(len(self.frames))])


@dataclass(eq=False, slots=True)
class _Worker:
    """One worker process: the items it was sent and has not answered, the first of which it is working on."""

    token: int
    pid: int | None = None
    channel: SocketChannel | None = None
    items: deque[tuple[_Batch, int]] = field(default_factory=deque)
    due: float = math.inf
    timer: asyncio.TimerHandle | None = None
    served: int = 0


def chunk(waiting: int, workers: int) -> int:
    """How many of the `waiting` items a worker is given: as many as amortise a message and no more.

    One at a time towards the end, so no item queues behind a slow one while a worker stands idle.
    """
    return max(1, min(MAX_CHUNK, waiting // (4 * workers)))


class WorkerPool(AsyncClosing):
    """Worker processes for one check function.

    `check` and `warm_up` are `module:function`; `warm_up` is called once, before any fork, so that what it
    loads and caches is there in every worker. `size` is the number of workers, by default that of the
    processors this process may count on; `memory_bytes` bounds each worker's address space (0: unbounded).
    """

    def __init__(
        self,
        check: str,
        *,
        warm_up: str | None = None,
        size: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        start_timeout_s: float = 120.0,
    ) -> None:
        if size is not None and size < 1:
            raise QuintainError(f"a worker pool has at least one worker, not {size}")
        self._spec = WorkerSpec(check, warm_up, memory_bytes, start_timeout_s)
        self._size = size or cores()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._zygote: ZygoteHandle | None = None
        self._workers: dict[int, _Worker] = {}
        self._queue: FairQueue[_Batch, int] = FairQueue()
        self._batches: set[_Batch] = set()
        self._tokens = 0
        self._closed = False

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are up, for metrics and for tests that kill them."""
        return tuple(worker.pid for worker in self._workers.values() if worker.pid is not None)

    async def run(self, items: Sequence[Mapping[str, Any]], *, deadline_s: float) -> list[Verdict]:
        """The verdict on each of `items`, in order; each may take `deadline_s` of wall time once it is begun.

        Raises `QuintainError` where the workers cannot start at all, `FailureError` (cancelled) where the
        pool is closed meanwhile.
        """
        if not (math.isfinite(deadline_s) and deadline_s > 0):
            raise QuintainError(f"deadline_s is a positive number of seconds, not {deadline_s!r}")
        loop = self._bind()
        frames = [
            encode({"id": index, "item": dict(item), "deadline_s": deadline_s}) for index, item in enumerate(items)
        ]
        if not frames:
            return []
        batch = _Batch(frames, deadline_s, loop.create_future())
        self._batches.add(batch)
        self._queue.add(batch, range(len(frames)))
        try:
            self._work()
            return await batch.done
        finally:
            self._batches.discard(batch)
            if len(batch.verdicts) < len(frames):
                self._abandon(batch)

    async def close(self) -> None:
        """End all workers and wait until they are gone. Waiting calls of `run` end with a failure."""
        if self._closed:
            return
        self._closed = True
        closed = Failure.of(FailureKind.CANCELLED, Stage.VERIFY, "the verifier was closed")
        self._fail_all(FailureError(closed))
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise QuintainError("this worker pool is closed: make a new one")
        if self._loop is not None and self._loop.is_closed():
            self._start_over()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise QuintainError("a worker pool belongs to the event loop that first used it: make one for each loop")
        return loop

    def _start_over(self) -> None:
        """The loop of the last use was closed, and nobody waits: forget all that belonged to it."""
        self._batches.clear()
        self._queue = FairQueue()
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._zygote is not None:
            self._zygote.discard()
        self._zygote = self._loop = None

    # What there is to do, and who does it

    def _work(self) -> None:
        """Give waiting items to workers that want some, and have workers made while there are too few."""
        if not self._queue or self._closed or self._loop is None:
            return
        if self._zygote is None:
            try:
                self._zygote = ZygoteHandle(
                    self._loop, self._spec, on_ready=self._work, on_exit=self._on_exit, on_gone=self._on_gone
                )
            except OSError as error:
                self._fail_all(QuintainError(f"no process can be started for the verifier: {error}"))
                return
        if not self._zygote.ready:
            return
        for worker in list(self._workers.values()):
            # One item ahead hides the way there and back; not near the end, where it could wait for nothing.
            if not worker.items or (len(worker.items) == 1 and len(self._queue) > 2 * self._size):
                self._give(worker)
        while self._queue and len(self._workers) < self._size:
            self._give(self._spawn(self._loop, self._zygote))

    def _spawn(self, loop: asyncio.AbstractEventLoop, zygote: ZygoteHandle) -> _Worker:
        self._tokens += 1
        worker = _Worker(self._tokens)
        self._workers[worker.token] = worker
        worker.channel = SocketChannel(
            loop,
            zygote.spawn(worker.token),
            lambda message: self._on_message(worker, message),
            lambda: zygote.kill(worker.token),  # its exit, which the zygote reports, is what counts
        )
        worker.due = loop.time() + START_GRACE_S
        return worker

    def _give(self, worker: _Worker) -> None:
        if not self._queue:
            return
        assert worker.channel is not None
        batch, indices = self._queue.take(chunk(len(self._queue), self._size))
        idle = not worker.items
        worker.items.extend((batch, index) for index in indices)
        worker.channel.send(b"".join(batch.frames[index] for index in indices))
        if idle and worker.pid is not None:
            self._begin(worker)
        elif idle:
            self._arm(worker)

    def _begin(self, worker: _Worker) -> None:
        """The first of the worker's items is being checked from now on."""
        if worker.items:
            batch, _ = worker.items[0]
            allowed = batch.deadline_s if batch in self._batches else ABANDONED_GRACE_S
            worker.due = asyncio.get_running_loop().time() + allowed
            self._arm(worker)

    def _arm(self, worker: _Worker) -> None:
        # One timer serves many items: it looks again when it fires, and is replaced only by an earlier one.
        if worker.timer is not None:
            if worker.timer.when() <= worker.due:
                return
            worker.timer.cancel()
        worker.timer = asyncio.get_running_loop().call_at(worker.due, self._on_timer, worker)

    # What happens

    def _on_message(self, worker: _Worker, message: Any) -> None:
        if "hello" in message:
            worker.pid = message["hello"]
            self._begin(worker)
            return
        if not worker.items or message.get("id") != worker.items[0][1]:
            self._retire(worker)  # it answers what nobody asked: its items go elsewhere
            self._work()
            return
        batch, index = worker.items.popleft()
        batch.settle(index, verdict_of_reply(message))
        worker.served += 1
        if not message["fit"] or (worker.served >= ITEMS_PER_WORKER and not worker.items):
            self._retire(worker)
        else:
            self._begin(worker)
        self._work()

    def _on_timer(self, worker: _Worker) -> None:
        worker.timer = None
        if worker.channel is not None:
            worker.channel.drain()  # the answer may be there already, and this loop late
        if worker.token not in self._workers or not worker.items:
            return
        if asyncio.get_running_loop().time() < worker.due:
            self._arm(worker)
            return
        batch, index = worker.items[0]
        if worker.pid is None:
            self._excuse(batch, index, "a worker process did not start")
        else:
            message = f"the item took more than its {batch.deadline_s:g} s"
            batch.settle(index, Verdict.failed(Outcome.TIMEOUT, message, elapsed_s=batch.deadline_s))
        worker.items.popleft()
        self._retire(worker)
        self._work()

    def _on_exit(self, token: int, status: int | None, message: str) -> None:
        worker = self._workers.get(token)
        if worker is None:
            return  # retired: its items are elsewhere
        if worker.channel is not None:
            worker.channel.drain()  # what it still answered counts
        if token in self._workers:
            self._lost(worker, status, message)
            self._work()

    def _on_gone(self, reason: str) -> None:
        started = self._zygote is not None and self._zygote.ready
        self._zygote = None
        if not started:
            self._fail_all(QuintainError(f"the worker processes for {self._spec.check!r} cannot start: {reason}"))
        for worker in list(self._workers.values()):
            self._lost(worker, None, "the process that made its worker died")
        self._work()

    # What becomes of items and workers

    def _lost(self, worker: _Worker, status: int | None, message: str) -> None:
        """The worker died: judge the item it was working on, have the others checked elsewhere."""
        if worker.items:
            batch, index = worker.items.popleft()
            verdict = verdict_of_death(status, batch.deadline_s)
            if verdict is None:
                self._excuse(batch, index, message or how_it_died(status))
            else:
                batch.settle(index, verdict)
        self._forget(worker)

    def _excuse(self, batch: _Batch, index: int, why: str) -> None:
        """The death was perhaps not the item's fault: try it once more, and only then call it crashed."""
        if batch not in self._batches:
            return
        if index in batch.retried:
            batch.settle(index, Verdict.failed(Outcome.CRASHED, f"{why}, and it was the second time"))
        else:
            batch.retried.add(index)
            self._queue.put_back(batch, [index])

    def _retire(self, worker: _Worker) -> None:
        """Kill the worker; whoever still waits in it is checked elsewhere."""
        self._forget(worker)
        if self._zygote is not None:
            self._zygote.kill(worker.token)

    def _forget(self, worker: _Worker) -> None:
        self._workers.pop(worker.token, None)
        while worker.items:
            batch, index = worker.items.pop()
            if batch in self._batches:
                self._queue.put_back(batch, [index])
        if worker.timer is not None:
            worker.timer.cancel()
        if worker.channel is not None:
            worker.channel.close()

    def _abandon(self, batch: _Batch) -> None:
        """Nobody waits for `batch` any more: drop what waits, hurry what runs."""
        self._queue.drop(batch)
        for worker in self._workers.values():
            if worker.items and worker.items[0][0] is batch and worker.pid is not None:
                worker.due = min(worker.due, asyncio.get_running_loop().time() + ABANDONED_GRACE_S)
                self._arm(worker)

    def _fail_all(self, error: Exception) -> None:
        for batch in list(self._batches):
            self._queue.drop(batch)
            if not batch.done.done():
                batch.done.set_exception(error)
        self._batches.clear()
