"""Verifiers that check in killable worker processes: for whatever may hang, crash or eat memory.

What always holds, beyond what holds for every verifier: no process starts before an item needs one; what can be
decided without one is decided in this process.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from quintain.frames import MAX_FRAME_BYTES, FrameError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item, Verifier
from quintain.verifiers.options import WorkerOptions
from quintain.verifiers.pure import crashed, unreadable
from quintain.verifiers.workers.pool import DEFAULT_MEMORY_BYTES, WorkerPool
from quintain.verifiers.workers.wire import encode

MARGIN_BYTES: Final = 1 << 12
"""Room in a frame for what the pool adds to an item."""


class PooledVerifier(Verifier):
    """Judges with a `module:function` in the workers of one pool; `question` makes what the function is asked."""

    check: ClassVar[str]
    warm_up: ClassVar[str | None] = None
    memory_bytes: ClassVar[int] = DEFAULT_MEMORY_BYTES

    def __init__(self, options: WorkerOptions) -> None:
        self._deadline_s = options.deadline_s
        self._pool = WorkerPool(self.check, warm_up=self.warm_up, size=options.workers, memory_bytes=self.memory_bytes)

    @property
    def pool(self) -> WorkerPool:
        """The workers, for metrics and for tests that kill them."""
        return self._pool

    @abstractmethod
    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """The verdict on `item` where it needs no worker, else what the check is given (plain data)."""

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; `deadline_s` bounds each item, not the batch."""
        verdicts: dict[int, Verdict] = {}
        questions: dict[int, dict[str, Any]] = {}
        for index, item in enumerate(items):
            started = time.perf_counter()
            found = self._question(item)
            if isinstance(found, Verdict):
                verdicts[index] = replace(found, elapsed_s=time.perf_counter() - started)
            else:
                questions[index] = found
        if questions:
            allowed_s = self._deadline_s if deadline_s is None else deadline_s
            asked = await self._pool.run(list(questions.values()), deadline_s=allowed_s)
            verdicts.update(zip(questions, asked, strict=True))
        return [verdicts[index] for index in range(len(items))]

    async def close(self) -> None:
        """End the workers."""
        await self._pool.close()

    def _question(self, item: Item) -> Verdict | dict[str, Any]:
        refused = unreadable(item.answer)
        if refused is not None:
            return refused
        try:
            question = self.question(item)
        except Exception as error:  # the boundary: a flaw in reading one item costs that item
            return crashed(error)
        return question if isinstance(question, Verdict) else _sendable(question)


def _sendable(question: dict[str, Any]) -> Verdict | dict[str, Any]:
    try:
        size = len(encode(question))
    except FrameError as error:
        return Verdict.failed(Outcome.BAD_REFERENCE, f"the item is too large for a worker: {error}")
    except (TypeError, ValueError, OverflowError) as error:
        return Verdict.failed(Outcome.BAD_REFERENCE, f"the reference is not plain data: {error}")
    if size > MAX_FRAME_BYTES - MARGIN_BYTES:
        return Verdict.failed(Outcome.BAD_REFERENCE, "the item is too large for a worker")
    return question
