"""The rollout server's client: blocking calls that survive a lost connection and a restart of the server.

A call waits in short long-polls; between them `poll` is called, which may draw progress or raise to stop waiting.
Connection errors are retried for `patience_s`, in which a supervisor may start the server again; a server that is
full (429) is asked again as long. Needs httpx and no server.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx

from quintain.codec import from_json, pack, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.engines.base import Weights
from quintain.rollout.weights.canary import Canary
from quintain.rollout.wire import (
    FRAME,
    FRAMES,
    MSGPACK,
    AdmitRequest,
    DrainReport,
    Health,
    Progress,
    PublishAnswer,
    PublishRequest,
    RunRequest,
    RunStatus,
    Stats,
    StreamItem,
)
from quintain.serving.refusals import FailureBody
from quintain.task import Task
from quintain.trajectory import Group, Trajectory

Poll = Callable[[Progress | None], None]

WAIT_S = 1.0
"""How long one long-poll waits: so often is `poll` called."""
RETRY_S = 0.2


class RolloutClient:
    """Talks to the rollout server at `url`, with its `token` if it wants one.

    Raises FailureError with the server's own failure.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        patience_s: float = 120.0,
        poll: Poll = lambda progress: None,
    ) -> None:
        self.url, self.patience_s, self.poll = url, patience_s, poll
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(60.0, read=600.0))

    def health(self) -> Health:
        """Who is there."""
        return from_json(self._call("GET", "/health").content, Health)

    def stats(self) -> Stats:
        """The server's counters."""
        return from_json(self._call("GET", "/v1/stats").content, Stats)

    def metrics(self) -> str:
        """Everything measured, in Prometheus' text format."""
        return self._call("GET", "/metrics").text

    def publish(self, weights: Weights, canary: Canary, *, admit: bool = True) -> PublishAnswer:
        """Put `weights` in force; FailureError (stage publish) where the canary refuses."""
        body = PublishRequest(str(weights.path), weights.version, canary.rows, canary.logprobs, canary.tolerance, admit)
        return from_json(self._call("POST", "/v1/publish", pack(body)).content, PublishAnswer)

    def admit(self, version: int) -> None:
        """Start what the staleness rule allows at `version`."""
        self._call("POST", "/v1/admit", pack(AdmitRequest(version)))

    def batch(self, step: int) -> list[Group]:
        """The groups of `step`, once they are complete; the same ones each time. Lost where weights are needed."""
        while True:
            answer = self._call("GET", f"/v1/batches/{step}?wait_s={WAIT_S}")
            if answer.status_code != 202:
                return unpack(answer.content, list[Group])
            self.poll(from_json(answer.content, Progress))

    def pause(self) -> Stats:
        """Stop sampling at a token boundary; what is in flight is kept."""
        return from_json(self._call("POST", "/v1/pause").content, Stats)

    def resume(self) -> Stats:
        """Go on sampling, and admitting where the server drained."""
        return from_json(self._call("POST", "/v1/resume").content, Stats)

    def drain(self, *, wait: bool = True) -> DrainReport:
        """Have the server finish what runs and start nothing new; with `wait`, return when nothing is left."""
        while True:
            answer = self._call("POST", f"/v1/drain?wait_s={WAIT_S if wait else 0}")
            report = from_json(answer.content, DrainReport)
            if report.drained or not wait:
                return report
            self.poll(None)

    def submit(self, request: RunRequest) -> RunStatus:
        """Begin a run. Repeating it is safe where `request.run` names it, which it does once this has returned."""
        named = request if request.run else replace(request, run=uuid.uuid4().hex)
        return from_json(self._call("POST", "/v1/runs", pack(named)).content, RunStatus)

    def status(self, run: str) -> RunStatus:
        """Where a run stands. Lost where the server does not know it (any more)."""
        return from_json(self._call("GET", f"/v1/runs/{run}").content, RunStatus)

    def groups(self, run: str, cursor: int = 0) -> Iterator[tuple[int, Group]]:
        """The groups of `run` as they finish, from `cursor` on, each with the cursor after it, until the run's end.

        A lost connection is taken up again where it broke. Whoever keeps the last cursor can go on from it in another
        process. Lost where the server does not know the run (any more).
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                for item in self._stream(f"/v1/runs/{run}/groups", cursor):
                    deadline = time.monotonic() + self.patience_s
                    if item.group is not None:
                        cursor = item.cursor
                        yield cursor, item.group
                    elif item.status is not None:
                        if item.end:
                            self._check_ended_well(item.status)
                            return
                        self.poll(Progress(item.status.done, item.status.total))
            except httpx.TransportError as error:
                self._wait_for_server(error, deadline)

    def sessions(self, cursor: int = 0) -> Iterator[tuple[int, Trajectory]]:
        """Agents' sessions as they finish, from `cursor` on, each with the cursor after it; it never ends by itself.

        Cursors stay the same when the server starts again.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                for item in self._stream("/v1/sessions/finished", cursor):
                    deadline = time.monotonic() + self.patience_s
                    if item.group is not None:
                        cursor = item.cursor
                        yield cursor, item.group.trajectories[0]
                self.poll(None)
            except httpx.TransportError as error:
                self._wait_for_server(error, deadline)

    def cancel(self, run: str) -> RunStatus:
        """End a run; what it finished can still be fetched."""
        return from_json(self._call("POST", f"/v1/runs/{run}/cancel").content, RunStatus)

    def forget(self, run: str) -> RunStatus:
        """End a run, and free what the server keeps of it."""
        return from_json(self._call("DELETE", f"/v1/runs/{run}").content, RunStatus)

    def run_tasks(
        self,
        split: str | None = None,
        indices: Sequence[int] = (),
        *,
        tasks: Sequence[Task] = (),
        samples: int = 1,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> list[Group]:
        """`samples` episodes of each task, in the order given: those at `indices` of `split`, then `tasks` in full.

        Sampling is as `RunRequest` has it. Lost where the server started again meanwhile.
        """
        asked = RunRequest(
            split, tuple(indices), tuple(tasks), samples, seed, temperature, top_p, top_k, max_tokens
        )  # fmt: skip
        run = self.submit(asked).run
        try:
            found = [group for _, group in self.groups(run)]
        except BaseException:
            with contextlib.suppress(FailureError, httpx.HTTPError):
                self._http.delete(f"/v1/runs/{run}", timeout=5.0)  # nobody will come back for it
            raise
        self.forget(run)
        return _ordered(found, run, asked)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, path: str, cursor: int) -> Iterator[StreamItem]:
        """One answer's items. Raises httpx.TransportError where it breaks off."""
        url = f"{path}?cursor={cursor}&wait_s={WAIT_S}"
        with self._http.stream("GET", url, headers={"accept": FRAMES}) as answer:
            if not answer.is_success:
                answer.read()
                raise FailureError(_refusal(answer))
            buffer = bytearray()
            for chunk in answer.iter_bytes():
                buffer += chunk
                while (body := _frame(buffer)) is not None:
                    yield unpack(body, StreamItem)

    def _check_ended_well(self, status: RunStatus) -> None:
        if status.failure is not None:
            raise FailureError(status.failure)
        if status.finished < status.groups:
            message = f"run {status.run} was {status.state} after {status.finished} of {status.groups} groups"
            raise FailureError(Failure.of(FailureKind.CANCELLED, Stage.GENERATE, message))

    def _call(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        deadline = time.monotonic() + self.patience_s
        headers = {} if body is None else {"content-type": MSGPACK}
        while True:
            try:
                answer = self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError as error:
                self._wait_for_server(error, deadline)
                continue
            if answer.is_success:
                return answer
            if answer.status_code != 429 or time.monotonic() > deadline:
                raise FailureError(_refusal(answer))
            self.poll(None)
            time.sleep(_retry_after_s(answer))

    def _wait_for_server(self, error: httpx.TransportError, deadline: float) -> None:
        """Wait a moment for a server that does not answer; FailureError after the deadline."""
        self.poll(None)
        if time.monotonic() > deadline:
            message = f"the rollout server at {self.url} does not answer: {type(error).__name__}"
            raise FailureError(Failure.of(FailureKind.UNREACHABLE, Stage.GENERATE, message)) from None
        time.sleep(RETRY_S)


def _frame(buffer: bytearray) -> bytes | None:
    """Take the first whole frame off `buffer`, or None."""
    if len(buffer) < FRAME.size:
        return None
    (length,) = FRAME.unpack_from(buffer)
    if len(buffer) < FRAME.size + length:
        return None
    body = bytes(buffer[FRAME.size : FRAME.size + length])
    del buffer[: FRAME.size + length]
    return body


def _ordered(found: Sequence[Group], run: str, asked: RunRequest) -> list[Group]:
    """The groups in the order in which their tasks were given."""
    inline = {group.id: group for group in found if group.id.startswith(f"{run}-")}
    split = {group.index: group for group in found if group.id not in inline}
    return [split[index] for index in asked.indices] + [inline[f"{run}-{place}"] for place in range(len(asked.tasks))]


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return max(RETRY_S, float(answer.headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def _refusal(answer: httpx.Response) -> Failure:
    try:
        body: Any = from_json(answer.content, FailureBody)
    except QuintainError:
        message = f"the rollout server answered {answer.status_code} without a failure"
        return Failure.of(FailureKind.INVALID, Stage.GENERATE, message)
    failure: Failure = body.failure
    return failure
