"""The pages of runs: hand in, look at, stream, cancel, forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import to_builtins, to_json
from quintain.failure import Stage
from quintain.rollout.server.control import Control
from quintain.rollout.server.requests import cursor_of, read_request
from quintain.rollout.server.streams import Feed, Stream
from quintain.rollout.server.task_runs import TaskRuns
from quintain.rollout.wire import RunRequest, RunState
from quintain.serving.app import Page, json_answer


class RunPages:
    """The pages over `runs`."""

    def __init__(self, runs: TaskRuns, control: Control) -> None:
        self._runs, self._control = runs, control

    def pages(self) -> tuple[Page, ...]:
        """What to add to the server's."""
        return (
            Page("POST", "/v1/runs", Stage.GENERATE, self._submit, body=RunRequest),
            Page("GET", "/v1/runs/{run}", Stage.GENERATE, self._status),
            Page("GET", "/v1/runs/{run}/groups", Stage.GENERATE, self._groups),
            Page("POST", "/v1/runs/{run}/cancel", Stage.GENERATE, self._cancel),
            Page("DELETE", "/v1/runs/{run}", Stage.GENERATE, self._forget),
        )

    async def _submit(self, request: Request) -> Response:
        asked = await read_request(request, RunRequest)
        self._control.check_admitting()
        return json_answer(to_json(self._runs.submit(asked)), 201)

    async def _status(self, request: Request) -> Response:
        return json_answer(to_json(self._runs.status(request.path_params["run"])))

    async def _groups(self, request: Request) -> Response:
        run, cursor = request.path_params["run"], cursor_of(request)
        self._runs.acknowledge(run, cursor)
        feed = _Groups(self._runs, run)
        await feed.get(cursor)  # one that is forgotten is refused before the answer begins
        return Stream(feed, cursor, request)

    async def _cancel(self, request: Request) -> Response:
        return json_answer(to_json(await self._runs.cancel(request.path_params["run"])))

    async def _forget(self, request: Request) -> Response:
        return json_answer(to_json(await self._runs.forget(request.path_params["run"])))


class _Groups(Feed):
    """A run as a feed."""

    def __init__(self, runs: TaskRuns, run: str) -> None:
        self._runs, self._run = runs, run

    async def get(self, cursor: int) -> bytes | None:
        return self._runs.group(self._run, cursor)

    async def wait(self, cursor: int, until: float) -> None:
        await self._runs.wait(self._run, cursor, until)

    def stalled(self) -> bool:
        return not self._runs.results.room

    def last(self, cursor: int) -> Mapping[str, Any]:
        status = self._runs.status(self._run)
        end = status.state is not RunState.RUNNING and cursor == status.finished
        return {"end": end, "status": to_builtins(status)}
