"""The rollout server's client: blocking calls that survive a lost connection and a restart of the server.

A call waits in short long-polls; between them `poll` is called, which may draw progress or raise to stop waiting.
A server that cannot be reached is asked again for `patience_s`, in which a supervisor may start it again, and one that
is full for as long as a call may take. Needs httpx and no server.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quintain.calling.caller import Caller
from quintain.calling.retry import RetryPolicy
from quintain.closing import Closing
from quintain.codec import from_json, pack, unpack
from quintain.failure import FailureError, FailureKind, Stage
from quintain.frames import FrameReader
from quintain.rollout.engines.base import Weights
from quintain.rollout.weights.canary import Canary
from quintain.rollout.wire import (
    FRAMES,
    MSGPACK,
    AdmitRequest,
    BatchProgress,
    DrainReport,
    Health,
    PublishAnswer,
    PublishRequest,
    RunRequest,
    Stats,
    StreamItem,
    TaskRunStatus,
)
from quintain.task import Task
from quintain.trajectory import Group, Trajectory

if TYPE_CHECKING:
    import httpx

Poll = Callable[[BatchProgress | None], None]

WAIT_S = 1.0
"""How long one long-poll waits: so often is `poll` called."""
CALL_S = 600.0
"""The longest that one call may take, such as a publish."""
FORGET = RetryPolicy(timeout_s=5.0, patience_s=0.0)
"""Nobody waits for it: the server forgets by itself in the end."""


class RolloutClient(Closing):
    """Talks to the rollout server at `url`, with its `token` if it wants one.

    Raises FailureError with the server's own failure.
    """

    def __init__(
        self, url: str, token: str | None = None, *, patience_s: float = 120.0, poll: Poll = lambda progress: None
    ) -> None:
        self.url, self.poll = url, poll
        policy = RetryPolicy(CALL_S, patience_s)
        self._caller = Caller(url, token, server="rollout server", policy=policy, between=lambda: self.poll(None))

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
        groups: list[Group] = []
        while True:
            answer = self._call("GET", f"/v1/batches/{step}?cursor={len(groups)}&wait_s={WAIT_S}", accept=FRAMES)
            if answer.status_code == 202:
                self.poll(from_json(answer.content, BatchProgress))
                continue
            for item in _items(answer.content):
                if item.group is not None:
                    groups.append(item.group)
                elif item.end:
                    return groups

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

    def submit(self, request: RunRequest) -> TaskRunStatus:
        """Begin a run. Repeating it is safe where `request.run` names it, which it does once this has returned."""
        named = request if request.run else replace(request, run=uuid.uuid4().hex)
        return from_json(self._call("POST", "/v1/runs", pack(named)).content, TaskRunStatus)

    def status(self, run: str) -> TaskRunStatus:
        """Where a run stands. Lost where the server does not know it (any more)."""
        return from_json(self._call("GET", f"/v1/runs/{run}").content, TaskRunStatus)

    def groups(self, run: str, cursor: int = 0) -> Iterator[tuple[int, Group]]:
        """The groups of `run` as they finish, from `cursor` on, each with the cursor after it, until the run's end.

        A lost connection is taken up again where it broke. Whoever keeps the last cursor can go on from it in another
        process. Lost where the server does not know the run (any more).
        """
        while True:
            for item in self._items(f"/v1/runs/{run}/groups", cursor):
                if item.group is not None:
                    cursor = item.cursor
                    yield cursor, item.group
                elif item.status is not None:
                    if item.end:
                        self._check_ended_well(item.status)
                        return
                    self.poll(BatchProgress(item.status.done, item.status.total))

    def sessions(self, cursor: int = 0) -> Iterator[tuple[int, Trajectory]]:
        """Agents' sessions as they finish, from `cursor` on, each with the cursor after it; it never ends by itself.

        Cursors stay the same when the server starts again.
        """
        while True:
            for item in self._items("/v1/sessions/finished", cursor):
                if item.group is not None:
                    cursor = item.cursor
                    yield cursor, item.group.trajectories[0]
            self.poll(None)

    def cancel(self, run: str) -> TaskRunStatus:
        """End a run; what it finished can still be fetched."""
        return from_json(self._call("POST", f"/v1/runs/{run}/cancel").content, TaskRunStatus)

    def forget(self, run: str) -> TaskRunStatus:
        """End a run, and free what the server keeps of it."""
        return from_json(self._call("DELETE", f"/v1/runs/{run}").content, TaskRunStatus)

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
        environment: str | None = None,
    ) -> list[Group]:
        """`samples` episodes of each task, in the order given: those at `indices` of `split`, then `tasks` in full.

        Sampling is as `RunRequest` has it. Lost where the server started again meanwhile.
        """
        asked = RunRequest(
            split, tuple(indices), tuple(tasks), samples, seed, temperature, top_p, top_k, max_tokens,
            environment=environment,
        )  # fmt: skip
        run = self.submit(asked).run
        try:
            found = [group for _, group in self.groups(run)]
        except BaseException:
            with contextlib.suppress(FailureError):  # nobody will come back for it
                self._caller.call_sync("DELETE", f"/v1/runs/{run}", Stage.GENERATE, policy=FORGET)
            raise
        self.forget(run)
        return _ordered(found, run, asked)

    def close(self) -> None:
        """Close the connections."""
        self._caller.close()

    def _items(self, path: str, cursor: int) -> Iterator[StreamItem]:
        return _items(self._call("GET", f"{path}?cursor={cursor}&wait_s={WAIT_S}", accept=FRAMES).content)

    def _check_ended_well(self, status: TaskRunStatus) -> None:
        if status.failure is not None:
            raise FailureError(status.failure)
        if status.finished < status.groups:
            message = f"run {status.run} was {status.state} after {status.finished} of {status.groups} groups"
            raise FailureError.of(FailureKind.CANCELLED, Stage.GENERATE, message)

    def _call(self, method: str, path: str, body: bytes | None = None, *, accept: str = "*/*") -> httpx.Response:
        headers = {"accept": accept} if body is None else {"content-type": MSGPACK}
        return self._caller.call_sync(method, path, Stage.GENERATE, body, headers=headers)


def _items(body: bytes) -> Iterator[StreamItem]:
    """The items of one answer, which has come in whole: its end is what says that nothing is missing."""
    reader = FrameReader()
    reader.feed(body)
    return (unpack(one, StreamItem) for one in reader.bodies())


def _ordered(found: Sequence[Group], run: str, asked: RunRequest) -> list[Group]:
    """The groups in the order in which their tasks were given."""
    inline = {group.id: group for group in found if group.id.startswith(f"{run}-")}
    split = {group.index: group for group in found if group.id not in inline}
    return [split[index] for index in asked.indices] + [inline[f"{run}-{place}"] for place in range(len(asked.tasks))]
