"""Graders that stand ready, each in a session of its own: an item's tests run in a fork of one (`guest.grader_host`).

What always holds: a grader serves one item at a time, and the next only after it said that the fork is gone; one that
was not heard to the end of an item is thrown away; each is thrown away after so many items.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from quintain.frames import FrameError
from quintain.verifiers.code.guest_process import GuestProcess
from quintain.verifiers.code.sandboxes import Sandboxes
from quintain.verifiers.sandbox.interface import Limits

ITEMS: Final = 500
LIFETIME_S: Final = 1800.0
"""Of a grader's session. It ends by itself then, and another takes its place."""


class GraderProcess:
    """One grader. `fresh` says that it has served nobody yet."""

    def __init__(self, process: GuestProcess) -> None:
        self.process = process
        self.fresh = True
        self._left = ITEMS
        self._born = asyncio.get_running_loop().time()

    async def ready(self) -> bool:
        """Whether it can take another item: its last fork is gone, and it is not too old."""
        age_s = asyncio.get_running_loop().time() - self._born
        if self._left == 0 or age_s > LIFETIME_S / 2:
            return False
        self._left -= 1
        if not self.fresh:
            try:
                return await self.process.receive() == b"R"
            except FrameError:
                return False
        return True


class Graders:
    """Those of one verifier."""

    def __init__(self, sandboxes: Sandboxes, limits: Limits) -> None:
        self._sandboxes = sandboxes
        self._limits = replace(limits, wall_s=LIFETIME_S, cpu_s=LIFETIME_S)
        self._idle: list[GraderProcess] = []

    async def take(self) -> GraderProcess:
        """A grader that is ready. Raises FailureError where the sandbox breaks."""
        while self._idle:
            grader = self._idle.pop()
            if await grader.ready():
                return grader
            await grader.process.close()
        guest = await self._sandboxes.guest("grader_host")
        grader = GraderProcess(await GuestProcess.begin(self._sandboxes.main, guest, self._limits))
        await grader.ready()
        return grader

    def give_back(self, grader: GraderProcess) -> None:
        """It was heard to the end of an item."""
        grader.fresh = False
        self._idle.append(grader)

    async def close(self) -> None:
        """End them all."""
        while self._idle:
            await self._idle.pop().process.close()
