"""Verifiers that check in killable worker processes: for whatever may hang, crash or eat memory.

What always holds, beyond what holds for every verifier: no process starts before an item needs one; what can be
decided without one is decided in this process, where the event loop gets its turn between items.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, TypeVar

from quintain.frames import MAX_FRAME_BYTES, FrameError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.options import OptionsVerifier, WorkerOptions
from quintain.verifiers.pure import YIELD_AFTER_S, crashed, unreadable
from quintain.verifiers.workers.pool import DEFAULT_MEMORY_BYTES, WorkerPool
from quintain.verifiers.workers.wire import encode

MARGIN_BYTES: Final = 1 << 12
"""Room in a frame for what the pool adds to an item."""


W = TypeVar("W", bound=WorkerOptions)


class PooledVerifier(OptionsVerifier[W]):
    """Judges with a `module:function` in the workers of one pool; `question` makes what the function is asked."""

    check: ClassVar[str]
    warm_up: ClassVar[str | None] = None
    memory_bytes: ClassVar[int] = DEFAULT_MEMORY_BYTES

    def __init__(self, options: W | None = None) -> None:
        super().__init__(options)
        workers = self.options.workers
        self._pool = WorkerPool(self.check, warm_up=self.warm_up, size=workers, memory_bytes=self.memory_bytes)

    @abstractmethod
    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """The verdict on `item` where it needs no worker, else what the check is given (plain data).

        What it has under `detail` the check is not given: it begins the detail of the verdict, whatever that is.
        """

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; `deadline_s` bounds each item, not the batch."""
        verdicts: dict[int, Verdict] = {}
        questions: dict[int, dict[str, Any]] = {}
        turn = time.perf_counter()
        for index, item in enumerate(items):
            started = time.perf_counter()
            if started - turn > YIELD_AFTER_S:
                await asyncio.sleep(0)
                turn = started = time.perf_counter()
            found = self._question(item)
            if isinstance(found, Verdict):
                verdicts[index] = replace(found, elapsed_s=time.perf_counter() - started)
            else:
                questions[index] = found
        if questions:
            allowed_s = self.options.deadline_s if deadline_s is None else deadline_s
            details = [question.pop("detail", {}) for question in questions.values()]
            asked = await self._pool.run(list(questions.values()), deadline_s=allowed_s)
            for index, detail, verdict in zip(questions, details, asked, strict=True):
                verdicts[index] = replace(verdict, detail={**detail, **verdict.detail})
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
