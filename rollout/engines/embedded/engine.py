"""The embedded engine: a transformers model in a thread of this process, batching whatever is asked at once.

The event loop only passes messages: it puts commands into an inbox, and the engine's thread settles their futures.
The thread does everything else, between two token steps: admit, cancel, pause, load, score. So every command takes
effect at a token boundary, and nothing needs a lock but the inbox.

Invariants, beside those of `base.py`:
- requests that come together are decoded together (continuous batching): a row joins at any step, after its prompt
  has been read, and leaves at any step;
- with `expected` (lockstep) the batches depend on what was asked and not on when: see `batcher.py`;
- whatever breaks while computing becomes the failure of the rows it was computed for, and the engine goes on;
- when the thread ends, for whatever reason, every future it still owes is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from quintain.arrays import Floats, Ints, as_floats, as_ints
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Completion, EngineStats, Sampling, Weights
from quintain.rollout.engines.contract import check_request, check_rows
from quintain.rollout.engines.embedded.batcher import BatchLimits, Cohort
from quintain.rollout.engines.embedded.checkpoint import read_weights
from quintain.rollout.engines.embedded.decoder import Decoder, DecodeRow, failure_of
from quintain.rollout.engines.embedded.network import device_of, open_network, placed

T = TypeVar("T")

CACHE_BYTES = 2 << 30
PREFILL_TOKENS = 4096
PATIENCE_S = 30.0

_CLOSED = Failure.of(FailureKind.CANCELLED, Stage.GENERATE, "the engine was closed")


@dataclass(frozen=True, slots=True)
class _Reply:
    """A future of an event loop, settled from the engine's thread."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    @classmethod
    def here(cls) -> _Reply:
        loop = asyncio.get_running_loop()
        return cls(loop, loop.create_future())

    def settle(self, result: Any = None, failure: Failure | None = None) -> None:
        def on_loop() -> None:
            if self.future.done():  # cancelled: nobody wants it any more
                return
            if failure is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(FailureError(failure))

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it whoever waited
            self.loop.call_soon_threadsafe(on_loop)


@dataclass(frozen=True, slots=True)
class _Command:
    """Something for the engine's thread to do, and who must hear of it if the thread ends first."""

    work: Callable[[], None]
    reply: _Reply | None = None


class EmbeddedEngine:
    """Samples from `model`: a folder, a hub's name, or a transformers model, which the engine takes over.

    `max_length` counts prompt and answer together; None is the model's own. `max_batch` rows are decoded at once, as
    long as their keys and values fit in `cache_bytes`. `prefill_tokens` bounds what is read or scored in one go.
    `device` is as in `rollout.device`. `threads` sets torch's threads for the whole process. `expected` turns lockstep
    on: it says how many sessions are able to submit right now; call `kick` when that changes. Where none of them does
    for `patience_s`, those that have are sampled without the others, and `report` is told, in a line. Raises
    QuintainError if the model cannot be run.
    """

    def __init__(
        self,
        model: str | Path | Any,
        *,
        dtype: str,
        device: str = "cpu",
        max_batch: int = 64,
        max_length: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        prefill_tokens: int = PREFILL_TOKENS,
        threads: int | None = None,
        version: int = 0,
        expected: Callable[[], int] | None = None,
        patience_s: float = PATIENCE_S,
        report: Callable[[str], None] = print,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device_of(device)
        opened = open_network(model, dtype, max_length, self._device)
        self.max_length = opened.max_length
        self._words = opened.network.words
        limits = BatchLimits(max_batch, max(1, cache_bytes // opened.token_bytes), prefill_tokens)
        self._decoder = Decoder(opened.network, limits)
        self._decoder.version = version
        self._expected = expected
        self._cohort = Cohort(patience_s) if expected is not None else None
        self._moved = time.monotonic()  # when whom a cohort waits for has last changed
        self._report = report
        self._gathering: list[tuple[str, DecodeRow]] = []  # lockstep: not yet part of a cohort
        self._ready: deque[DecodeRow] = deque()  # may start as soon as there is room
        self._paused = False
        self._stopping = False
        self._busy_s = 0.0
        self._prepared: tuple[Weights, Any] | None = None  # new weights, built and not yet in use
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._ended: Failure | None = None
        self._ending = threading.Lock()  # makes "put, unless it has ended" one act
        # OpenMP counts threads per caller, so the engine's thread is told what this one uses.
        counted = (torch.get_num_threads(),)
        self._thread = threading.Thread(target=self._run, args=counted, name="embedded-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt_ids: Ints, sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn. Cancelling the awaiting task frees its slot at the next step.

        Raises FailureError: `rejected`, `too_long`, `crashed`, `resource`, `invalid` (logits that are not finite) or
        `cancelled` (the engine was closed), all at `generate`.
        """
        prompt = as_ints(prompt_ids)
        limit = check_request(prompt, sampling, max_length=self.max_length, words=self._words)
        reply = _Reply.here()
        row = DecodeRow(prompt.tolist(), sampling, limit, owner=reply)
        expected = self._expected() if self._expected else 0
        self._put(_Command(lambda: self._submit(session, row, expected), reply))
        try:
            completion: Completion = await reply.future
        except asyncio.CancelledError:
            with contextlib.suppress(FailureError):
                self._put(_Command(lambda: self._cancel(row)))
            raise
        return completion

    async def score(self, rows: Sequence[Ints]) -> list[Floats]:
        """Log-probabilities at temperature 1 of each row's tokens given those before: [L] -> [L - 1].

        Computed between two steps, also while paused.
        """
        checked = [as_ints(row) for row in rows]
        check_rows(checked, max_length=self.max_length, words=self._words)
        return await self._ask(lambda: self._score(checked), Stage.GENERATE)

    async def pause(self) -> None:
        """Stop sampling at a token boundary; requests in flight are kept."""
        await self._ask(lambda: self._set_paused(True), Stage.PUBLISH)

    async def resume(self) -> None:
        """Go on sampling."""
        await self._ask(lambda: self._set_paused(False), Stage.PUBLISH)

    async def prepare(self, weights: Weights) -> None:
        """Build new weights beside those in use, on a thread of its own; sampling goes on, slower."""
        try:
            built = await asyncio.to_thread(self._build, weights)
        except Exception as error:  # the boundary, as in `_ask`
            raise FailureError(failure_of(error, Stage.PUBLISH)) from error
        self._prepared = (weights, built)

    async def load(self, weights: Weights) -> None:
        """Swap the weights in. Requests in flight go on under the new version with recomputed caches.

        Raises FailureError at `publish`, and then the old weights are in place as if nothing had been asked.
        """
        prepared, self._prepared = self._prepared, None
        built = prepared[1] if prepared is not None and prepared[0] == weights else None
        await self._ask(lambda: self._load(weights, built), Stage.PUBLISH)

    def kick(self) -> None:
        """Say that what `expected` returns has changed. A no-op for an engine without it, or one that is closed."""
        if self._expected is not None:
            expected = self._expected()
            with contextlib.suppress(FailureError):
                self._put(_Command(lambda: self._set_expected(expected)))

    def stats(self) -> EngineStats:
        """Counters since the start. They may be of two neighbouring steps."""
        return EngineStats(
            version=self._decoder.version,
            running=len(self._decoder),
            waiting=len(self._gathering) + len(self._ready),
            prompt_tokens=self._decoder.prompt_tokens,
            output_tokens=self._decoder.output_tokens,
            busy_s=self._busy_s,
        )

    async def close(self) -> None:
        """End the thread and free everything; requests in flight end with a `cancelled` failure. May be repeated."""
        with contextlib.suppress(FailureError):
            self._put(_Command(self._stop))
        await asyncio.to_thread(self._thread.join)

    def _build(self, weights: Weights) -> Any:
        with torch.inference_mode(), placed(self._device):
            network = self._decoder.network
            return network.build(read_weights(weights.path, network.layout, str(self._device)))

    async def _ask(self, work: Callable[[], T], stage: Stage) -> T:
        reply = _Reply.here()

        def answer() -> None:
            try:
                result = work()
            except Exception as error:
                reply.settle(failure=failure_of(error, stage))
            else:
                reply.settle(result)

        self._put(_Command(answer, reply))
        result: T = await reply.future
        return result

    def _put(self, command: _Command) -> None:
        with self._ending:
            if self._ended is not None:
                raise FailureError(self._ended)
            self._inbox.put(command)

    # Everything below runs in the engine's thread.

    def _run(self, threads: int) -> None:
        ended = Failure.of(FailureKind.CRASHED, Stage.GENERATE, "the engine's thread died; start a new engine")
        try:
            torch.set_num_threads(threads)
            with torch.inference_mode(), placed(self._device):
                while not self._stopping:
                    self._obey(wait=not self._may_compute())
                    if self._may_compute():
                        self._advance()
            ended = _CLOSED
        finally:
            with self._ending:
                self._ended = ended
            self._settle_all(ended)

    def _obey(self, *, wait: bool) -> None:
        """Do what is in the inbox; `wait` for the first command if there is nothing else to do."""
        patience_s = self._cohort.patience_s if self._cohort is not None and self._gathering else None
        with contextlib.suppress(queue.Empty):
            self._inbox.get(block=wait, timeout=patience_s).work()
            while not self._stopping:
                self._inbox.get_nowait().work()

    def _may_compute(self) -> bool:
        if self._paused or self._stopping:
            return False
        running, waiting = len(self._decoder) + len(self._ready), len(self._gathering)
        still_s = time.monotonic() - self._moved
        if self._cohort is not None and self._cohort.ready(waiting, running, still_s):
            if waiting < self._cohort.expected:
                self._report(
                    f"{waiting} of {self._cohort.expected} episodes are sampled without the others, which did not come"
                    f" within {still_s:.0f} s (an environment is slow, or full): another run of this seed may differ"
                )
            self._ready.extend(row for _, row in sorted(self._gathering, key=_rank))
            self._gathering = []
        return bool(len(self._decoder) or self._ready)

    def _advance(self) -> None:
        start = time.perf_counter()
        new = [self._ready.popleft() for _ in range(self._decoder.room(self._ready))]
        outcome = self._decoder.advance(new)
        self._busy_s += time.perf_counter() - start
        self._moved = time.monotonic()
        for row in outcome.finished:
            row.owner.settle(row.completion())
        for row, failure in outcome.failed:
            row.owner.settle(failure=failure)

    def _submit(self, session: str, row: DecodeRow, expected: int) -> None:
        if self._cohort is None:
            self._ready.append(row)
        else:
            self._gathering.append((session, row))
            self._set_expected(expected)

    def _cancel(self, row: DecodeRow) -> None:
        self._gathering = [pair for pair in self._gathering if pair[1] is not row]
        self._ready = deque(other for other in self._ready if other is not row)
        self._decoder.remove([row])

    def _set_expected(self, expected: int) -> None:
        if self._cohort is not None:
            self._cohort.expected = expected
            self._moved = time.monotonic()

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        self._moved = time.monotonic()

    def _stop(self) -> None:
        self._stopping = True

    def _score(self, rows: list[Ints]) -> list[Floats]:
        start = time.perf_counter()
        scored = [as_floats(values.cpu().numpy().astype(np.float32)) for values in self._decoder.score(rows)]
        self._busy_s += time.perf_counter() - start
        return scored

    def _load(self, weights: Weights, built: Any) -> None:
        self._decoder.network.use(self._build(weights) if built is None else built)
        self._decoder.version = weights.version
        self._decoder.restart()

    def _settle_all(self, failure: Failure) -> None:
        owed: Iterable[_Reply | None] = [
            *(row.owner for _, row in self._gathering),
            *(row.owner for row in self._ready),
            *(row.owner for row in self._decoder.rows),
        ]
        self._gathering, self._ready = [], deque()
        self._decoder.remove(self._decoder.rows)
        with contextlib.suppress(queue.Empty):
            while True:
                owed = [*owed, self._inbox.get_nowait().reply]
        for reply in owed:
            if reply is not None:
                reply.settle(failure=failure)


def _rank(asked: tuple[str, DecodeRow]) -> tuple[str, bytes, int]:
    """By session name, then by what they ask (prompt, seed) where one session asks twice at once."""
    session, row = asked
    return session, np.array(row.prompt, dtype=np.int32).tobytes(), row.sampling.seed
