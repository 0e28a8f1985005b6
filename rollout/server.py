"""The rollout server's HTTP face: thin handlers over one `Conductor`.

Invariant: an answer that is not 2xx carries a `Failure` and nothing else; stack traces go to the server's log.
Waiting is by long polls of at most `wait_s`, so that a client can show progress and be interrupted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from quintain.codec import pack, to_builtins, to_json, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, failure_from
from quintain.rollout.canary import Canary
from quintain.rollout.conductor import Conductor
from quintain.rollout.engines.base import Weights
from quintain.rollout.leftovers import sweep
from quintain.rollout.wire import (
    MSGPACK,
    AdmitRequest,
    Health,
    Progress,
    PublishAnswer,
    PublishRequest,
    Refusal,
    RunRequest,
    Stats,
)
from quintain.trajectory import Group

T = TypeVar("T")

STATUS = {
    FailureKind.REJECTED: 400,
    FailureKind.TOO_LONG: 413,
    FailureKind.INVALID: 409,
    FailureKind.LOST: 409,
    FailureKind.OVERLOADED: 429,
    FailureKind.CRASHED: 500,
    FailureKind.CANCELLED: 503,
    FailureKind.UNREACHABLE: 503,
    FailureKind.TIMEOUT: 504,
    FailureKind.RESOURCE: 507,
}

MAX_WAIT_S = 30.0


def rollout_app(conductor: Conductor, *, trajectories: Path | None = None) -> Starlette:
    """The rollout server over `conductor`. Taken batches are written to the folder `trajectories` as JSON lines."""
    faces = _Handlers(conductor, trajectories)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await faces.close()
        await conductor.close()
        await conductor.engine.close()
        faces.sweep()

    routes = [
        Route("/health", _guard(faces.health), methods=["GET"]),
        Route("/metrics", _guard(faces.metrics), methods=["GET"]),
        Route("/v1/stats", _guard(faces.stats), methods=["GET"]),
        Route("/v1/publish", _guard(faces.publish), methods=["POST"]),
        Route("/v1/admit", _guard(faces.admit), methods=["POST"]),
        Route("/v1/batches/{step:int}", _guard(faces.batch), methods=["GET"]),
        Route("/v1/runs", _guard(faces.start_run), methods=["POST"]),
        Route("/v1/runs/{run}", _guard(faces.poll_run), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class _Run:
    """One evaluation under way."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self.job: asyncio.Task[list[Group]] | None = None


class _Handlers:
    def __init__(self, conductor: Conductor, trajectories: Path | None) -> None:
        self.conductor, self.trajectories = conductor, trajectories
        self.boot = uuid.uuid4().hex
        self.runs: dict[str, _Run] = {}
        self.published: Path | None = None

    async def health(self, request: Request) -> Response:
        conductor = self.conductor
        return _json(Health(self.boot, conductor.version, conductor.plan.max_length))

    async def publish(self, request: Request) -> Response:
        body: PublishRequest = await _body(request, PublishRequest)
        began = time.monotonic()
        canary = Canary(body.rows, body.logprobs, body.tolerance)
        self.published = Path(body.path)
        mismatch = await self.conductor.publish(Weights(Path(body.path), body.version), canary, admit=body.admit)
        return _json(PublishAnswer(mismatch.mean, mismatch.max, time.monotonic() - began))

    async def admit(self, request: Request) -> Response:
        body: AdmitRequest = await _body(request, AdmitRequest)
        self.conductor.admit(body.version)
        return _json(self._stats())

    async def batch(self, request: Request) -> Response:
        conductor, step = self.conductor, int(request.path_params["step"])
        groups = await conductor.batch(step, _wait_s(request))
        if groups is None:
            total = conductor.plan.groups * conductor.plan.members
            return _json(Progress(conductor.journal.progress(step, conductor.plan.groups), total), 202)
        if self.trajectories is not None:
            await asyncio.to_thread(write_trajectories, self.trajectories, step, groups)
        return Response(pack(groups, list[Group]), media_type=MSGPACK)

    async def start_run(self, request: Request) -> Response:
        body: RunRequest = await _body(request, RunRequest)
        run, name = _Run(len(body.indices) * body.samples), uuid.uuid4().hex

        def progress(done: int) -> None:
            run.done = done

        sampling = replace(self.conductor.plan.sampling, temperature=body.temperature)
        job = self.conductor.run_tasks(
            body.split,
            body.indices,
            samples=body.samples,
            sampling=sampling,
            seed=body.seed,
            progress=progress,
        )
        run.job = asyncio.create_task(job)
        self.runs[name] = run
        return JSONResponse({"run": name}, 201)

    async def poll_run(self, request: Request) -> Response:
        name = request.path_params["run"]
        run = self.runs.get(name)
        if run is None or run.job is None:
            message = f"no run {name}: the server has started again, or its result was fetched"
            raise FailureError(Failure.of(FailureKind.LOST, Stage.GENERATE, message))
        await asyncio.wait([run.job], timeout=_wait_s(request))
        if not run.job.done():
            return _json(Progress(run.done, run.total), 202)
        groups = run.job.result()
        del self.runs[name]
        return Response(pack(groups, list[Group]), media_type=MSGPACK)

    async def stats(self, request: Request) -> Response:
        return _json(self._stats())

    async def metrics(self, request: Request) -> Response:
        lines = []
        for key, value in to_builtins(self._stats()).items():
            if isinstance(value, dict):
                lines += [f'quintain_rollout_{key}{{kind="{name}"}} {n}' for name, n in value.items()]
            else:
                lines.append(f"quintain_rollout_{key} {value}")
        return PlainTextResponse("\n".join(lines) + "\n")

    async def close(self) -> None:
        for run in self.runs.values():
            if run.job is not None:
                run.job.cancel()

    def sweep(self) -> None:
        """Remove the published weights where the trainer was killed and could not."""
        if self.published is not None:
            sweep(self.published.parent.parent)

    def _stats(self) -> Stats:
        conductor, engine = self.conductor, self.conductor.engine.stats()
        return Stats(
            conductor.version,
            conductor.running(),
            engine.prompt_tokens,
            engine.output_tokens,
            engine.busy_s,
            dict(conductor.failures),
            dict(conductor.forks),
        )


def write_trajectories(folder: Path, step: int, groups: list[Group]) -> None:
    """One JSON object a line and trajectory, in `step-000012.jsonl`; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.jsonl"
    draft = path.with_suffix(".tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            for group in groups:
                for trajectory in group.trajectories:
                    file.write(json.dumps({"step": step, **to_builtins(trajectory)}, ensure_ascii=False) + "\n")
        draft.replace(path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}; free space on its disk, then resume"
        raise FailureError(Failure.of(FailureKind.RESOURCE, Stage.JOURNAL, message, retryable=False)) from error


def _guard(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except QuintainError as error:
            failure = Failure.of(FailureKind.REJECTED, Stage.GENERATE, str(error))
        except FailureError as error:
            failure = error.failure
        except Exception as error:  # the boundary: a bug here is one failed request, with its stack in the log
            traceback.print_exc(file=sys.stderr)
            failure = failure_from(error, Stage.GENERATE)
        return _json(Refusal(failure), STATUS[failure.kind])

    return guarded


def _wait_s(request: Request) -> float:
    try:
        return min(MAX_WAIT_S, max(0.0, float(request.query_params.get("wait_s", 0))))
    except ValueError:
        raise QuintainError("wait_s: expected seconds as a number") from None


async def _body(request: Request, kind: type[T]) -> T:
    return unpack(await request.body(), kind)


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
