"""The rollout server's HTTP face: thin pages over one `Scheduler`.

Invariant: an answer that is no success carries a `Failure` and nothing else; stack traces go to the server's log.
Waiting is by long polls of at most `wait_s`, so that a client can show progress and be interrupted.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import to_json, unpack
from quintain.failure import Stage
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.journal.journal import Journal
from quintain.rollout.journal.parquet import write_trajectories
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.control import Control
from quintain.rollout.server.metrics import rollout_metrics
from quintain.rollout.server.monitor import Monitor
from quintain.rollout.server.requests import cursor_of, read_request, wait_of
from quintain.rollout.server.session_pages import finished_page, gateway_pages
from quintain.rollout.server.streams import Feed, Stream
from quintain.rollout.server.task_pages import RunPages
from quintain.rollout.server.task_runs import RunLimits, TaskRuns
from quintain.rollout.weights.folders import sweep
from quintain.rollout.wire import AdmitRequest, BatchProgress, Health, PublishAnswer, PublishRequest, Stats
from quintain.serving.app import Page, application, json_answer, metrics_page
from quintain.serving.tokens import Role, Tokens
from quintain.trajectory import Group


def rollout_app(
    scheduler: Scheduler,
    *,
    trajectories: Path | None = None,
    tokens: Tokens | None = None,
    limits: RunLimits | None = None,
    gateway: Gateway | None = None,
    sessions: FinishedSessions | None = None,
) -> Starlette:
    """The rollout server over `scheduler`; closing the application closes the scheduler, its engine and the rest.

    Taken batches are written to the folder `trajectories` of the run's; what they are then older than the oldest of its
    `checkpoints` leaves the journal. Where there are `tokens`, one is asked for everywhere but
    at `/health`. `gateway` adds its pages for agents that are not ours, and `sessions`, where it keeps what they did,
    a page to fetch it.
    """
    faces = _Faces(scheduler, trajectories, limits or RunLimits(), gateway, sessions)
    tokens = tokens or Tokens()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        faces.monitor.start()
        try:
            yield
        finally:
            await faces.close()

    return application(faces.pages(), faces.metrics, tokens, lifespan=lifespan)


class _Batch(Feed):
    """The groups of a step as a feed, each read when its turn comes."""

    def __init__(self, journal: Journal, places: Sequence[int]) -> None:
        self._journal, self._places = journal, places

    async def get(self, cursor: int) -> bytes | None:
        if cursor >= len(self._places):
            return None
        return await asyncio.to_thread(self._journal.group, self._places[cursor])

    def last(self, cursor: int) -> Mapping[str, Any]:
        return {"end": cursor >= len(self._places)}


class _Faces:
    def __init__(
        self,
        scheduler: Scheduler,
        trajectories: Path | None,
        limits: RunLimits,
        gateway: Gateway | None,
        sessions: FinishedSessions | None,
    ) -> None:
        self.scheduler, self.trajectories, self.gateway, self.sessions = scheduler, trajectories, gateway, sessions
        self.checkpoints = trajectories.parent / "checkpoints" if trajectories is not None else Path()
        self.boot = uuid.uuid4().hex
        self.runs = TaskRuns(scheduler, limits)
        self.control = Control(scheduler, self.runs, gateway)
        self.monitor = Monitor(scheduler.engine.stats, self.runs.sweep)
        self.metrics = rollout_metrics(scheduler, self.runs, self.control, self.monitor, gateway)

    def pages(self) -> Sequence[Page]:
        return (
            Page("GET", "/health", Stage.REQUEST, self.health, open=True),
            metrics_page(self.metrics),
            Page("GET", "/v1/stats", Stage.REQUEST, self.stats),
            Page("POST", "/v1/publish", Stage.PUBLISH, self.publish, body=PublishRequest, answer=PublishAnswer),
            Page("POST", "/v1/admit", Stage.GENERATE, self.admit, body=AdmitRequest),
            Page("GET", "/v1/batches/{step:int}", Stage.GENERATE, self.batch),
            Page("POST", "/v1/pause", Stage.GENERATE, self.pause, role=Role.OPERATOR),
            Page("POST", "/v1/resume", Stage.GENERATE, self.resume, role=Role.OPERATOR),
            Page("POST", "/v1/drain", Stage.GENERATE, self.drain, role=Role.OPERATOR),
            *RunPages(self.runs, self.control).pages(),
            *(gateway_pages(self.gateway, self.control) if self.gateway is not None else ()),
            *((finished_page(self.sessions),) if self.sessions is not None else ()),
        )

    async def health(self, request: Request) -> Response:
        scheduler = self.scheduler
        return _json(Health(self.boot, scheduler.version, scheduler.plan.max_length, self.control.draining))

    async def publish(self, request: Request) -> Response:
        asked = await read_request(request, PublishRequest)
        mismatch = await self.control.publish(asked)
        stall_s = self.scheduler.stall_s
        self.metrics.observe("publish_stall_seconds", stall_s)
        return _json(PublishAnswer(mismatch.mean, mismatch.max, stall_s))

    async def admit(self, request: Request) -> Response:
        self.control.admit((await read_request(request, AdmitRequest)).version)
        return _json(self._stats())

    async def batch(self, request: Request) -> Response:
        scheduler, step = self.scheduler, int(request.path_params["step"])
        began, cursor = time.monotonic(), cursor_of(request)
        places = await scheduler.batch(step, wait_of(request))
        self.metrics.add("trainer_wait_seconds_total", time.monotonic() - began)
        if places is None:
            if self.control.drained:  # it will never be complete
                self.control.check_admitting()
            total = scheduler.plan.groups * scheduler.plan.members
            return _json(BatchProgress(scheduler.journal.progress(scheduler.plan.groups), total), 202)
        if not cursor:  # the others go on with what is written and counted
            self.metrics.add("batches_total")
            await asyncio.to_thread(self._keep, step, places)
        return Stream(_Batch(scheduler.journal, places), cursor, request)

    def _keep(self, step: int, places: Sequence[int]) -> None:
        """Write the batch to Parquet, and drop what no checkpoint needs. In a thread."""
        journal = self.scheduler.journal
        if self.trajectories is not None:
            groups = (unpack(journal.group(place), Group) for place in places)
            write_trajectories(self.trajectories, step, groups)
            kept = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")]
            journal.forget(min(map(int, filter(str.isdecimal, kept)), default=0))

    async def pause(self, request: Request) -> Response:
        await self.control.pause()
        return _json(self._stats())

    async def resume(self, request: Request) -> Response:
        await self.control.resume()
        return _json(self._stats())

    async def drain(self, request: Request) -> Response:
        report = await self.control.drain(wait_of(request))
        return _json(report, 200 if report.drained else 202)

    async def stats(self, request: Request) -> Response:
        return _json(self._stats())

    async def close(self) -> None:
        await self.monitor.stop()
        await self.runs.close()
        if self.gateway is not None:
            await self.gateway.close()  # before the file that its sessions end in
        if self.sessions is not None:
            self.sessions.close()
        await self.scheduler.close()
        await self.scheduler.engine.close()
        if self.control.published is not None:  # the weights of a trainer that was killed and could not
            sweep(self.control.published.parent.parent)

    def _stats(self) -> Stats:
        scheduler, engine = self.scheduler, self.scheduler.engine.stats()
        return Stats(
            scheduler.version,
            scheduler.running(),
            engine.prompt_tokens,
            engine.output_tokens,
            engine.busy_s,
            dict(scheduler.failures),
            dict(scheduler.forks),
            self.control.paused,
            self.control.draining,
            self.runs.under_way,
            self.runs.results.held_bytes,
            dict(sorted(scheduler.counters.staleness.items())),
        )


def _json(value: Any, status: int = 200) -> Response:
    return json_answer(to_json(value), status)
