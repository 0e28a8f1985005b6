"""An event loop in a thread of its own: for those who have none, and for a notebook, whose own is running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """The loop, in a thread called `name`; or the loop `within`, which somebody else runs."""

    def __init__(self, name: str, *, within: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = within or asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        if within is None:
            self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
            self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, done there; it is cancelled where the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread, where it has one."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
