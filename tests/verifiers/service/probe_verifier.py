"""A verifier that does what its items say, for the tests of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item, Verifier


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the probe."""

    cost: str = "WORKER"
    version: str = "1"


class ProbeVerifier(Verifier):
    """Does what the answers say; `detail["calls"]` counts what this instance has judged."""

    name: ClassVar[str] = "probe"
    options_type: ClassVar[type | None] = ProbeOptions

    def __init__(self, options: ProbeOptions) -> None:
        self.options = options
        self.cost = Cost[options.cost]
        self.calls = 0
        self.order: list[str] = []
        self.closed = False

    @property
    def version(self) -> str:
        return self.options.version

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        if any(item.answer == "short" for item in items):
            return []
        return [await self._judge(item) for item in items]

    async def close(self) -> None:
        self.closed = True

    async def _judge(self, item: Item) -> Verdict:
        self.calls += 1
        what, _, path = item.answer.partition(" ")
        self.order.append(item.answer)
        if what == "raise":
            raise RuntimeError("the probe was told to")
        if what == "fail":
            return Verdict.failed(Outcome.CRASHED, "the probe was told to fail")
        if what == "late":
            return Verdict(0.0, Outcome.TIMEOUT, None, 0.0, {"calls": self.calls})
        if what == "weird":
            return Verdict.scored(1.0, thing=object())
        if what == "wait":
            await _wait(Path(path))
        return Verdict.scored(float(what != "wrong"), calls=self.calls)


async def _wait(path: Path) -> None:
    """Until the file is there; beside it stands how far this came."""
    path.with_suffix(".begun").touch()
    try:
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - the event is another process's
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        path.with_suffix(".cancelled").touch()
        raise


def make_probe_verifier(**options: Any) -> ProbeVerifier:
    """The factory."""
    return ProbeVerifier(ProbeOptions(**options))
