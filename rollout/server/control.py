"""What trainer and operator may ask of a running rollout: publish, admit, pause, resume, drain.

Invariants:
- a paused engine stays paused through a publish, until somebody resumes it;
- sampling is never resumed with weights that a canary refused;
- while it drains, nothing new is admitted: what was started is finished, and handed over as ever.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Weights
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.task_runs import TaskRuns
from quintain.rollout.weights.canary import Canary, Mismatch
from quintain.rollout.wire import DrainReport, PublishRequest
from quintain.serving.refusals import Refused, refused

DRAIN_LOOK_S = 0.05


class Control:
    """The controls of one `scheduler` and its `runs`."""

    def __init__(self, scheduler: Scheduler, runs: TaskRuns, gateway: Gateway | None = None) -> None:
        self._scheduler, self._runs, self._gateway = scheduler, runs, gateway
        self.paused = False  # whether somebody paused the engine
        self.published: Path | None = None
        self._refused: Failure | None = None  # the publish after which nobody knows which weights are in place
        self._lock = asyncio.Lock()

    @property
    def draining(self) -> bool:
        """Whether nothing new is admitted."""
        return self._scheduler.draining

    async def publish(self, request: PublishRequest) -> Mismatch:
        """Put weights in force. Raises FailureError; Refused (409) where the canary refuses them."""
        canary = Canary(request.rows, request.logprobs, request.tolerance)
        weights = Weights(Path(request.path), request.version)
        self.published = weights.path
        async with self._lock:
            try:
                mismatch = await self._scheduler.publish(weights, canary, admit=request.admit and not self.draining)
            except FailureError as error:
                if error.failure.kind is FailureKind.INVALID and error.failure.stage is Stage.PUBLISH:
                    self._refused = error.failure
                    raise Refused(error.failure, status=409) from None
                raise
            self._refused = None
            if self.paused:
                await self._scheduler.engine.pause()
        return mismatch

    def admit(self, version: int) -> None:
        """Start what the staleness rule allows at `version`. Raises Refused: 503 while draining, 409 for a version
        beyond the weights in place, whose groups would be without bound, or before one that was admitted."""
        self.check_admitting()
        newest = self._scheduler.engine.stats().version
        if version > newest:
            message = f"version {version} is not published yet, that in place is {newest}: publish first"
            raise refused(message, Stage.GENERATE, FailureKind.INVALID, status=409)
        if version < self._scheduler.version:
            message = (
                f"version {version} is before {self._scheduler.version}, which was admitted: versions never go back"
            )
            raise refused(message, Stage.GENERATE, FailureKind.INVALID, status=409)
        self._scheduler.admit(version)

    def check_admitting(self) -> None:
        """Raise Refused (503) while the server drains."""
        if self.draining:
            message = "the server is draining: it starts nothing new"
            raise refused(message, Stage.REQUEST, FailureKind.UNREACHABLE, retryable=False)

    async def pause(self) -> None:
        """Stop sampling at a token boundary; what is in flight is kept."""
        async with self._lock:
            self.paused = True
            await self._scheduler.engine.pause()

    async def resume(self) -> None:
        """Go on sampling, and admitting where the server drained. Raises Refused (409) after a refused publish."""
        async with self._lock:
            self._scheduler.draining = False
            if self._refused is not None:
                message = f"sampling stays stopped until a publish is accepted: {self._refused.message}"
                raise refused(message, Stage.PUBLISH, FailureKind.INVALID, status=409)
            self.paused = False
            await self._scheduler.engine.resume()
            if self._scheduler.version >= 0:  # start what was not while the server drained
                self._scheduler.admit(self._scheduler.version)

    async def drain(self, wait_s: float) -> DrainReport:
        """Admit nothing more; what is left when nothing is, or after `wait_s`."""
        self._scheduler.draining = True
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_s
        while not self.drained:
            if clock() >= deadline:
                break
            await asyncio.sleep(DRAIN_LOOK_S)
        balance = self._scheduler.journal.balance()
        return DrainReport(
            self.drained,
            self._scheduler.running(),
            self._scheduler.waiting,
            self._runs.episodes_left,
            self._sessions_live,
            self.paused,
            balance.issued,
            balance.completed,
            balance.consumed,
        )

    @property
    def drained(self) -> bool:
        """Whether the server drains and nothing is left of what it had started."""
        scheduler = self._scheduler
        left = scheduler.running() + scheduler.waiting + self._runs.episodes_left + self._sessions_live
        return self.draining and not left

    @property
    def _sessions_live(self) -> int:
        return 0 if self._gateway is None else self._gateway.live
