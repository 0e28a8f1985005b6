"""The trainer's side of the rollout server: blocking calls that survive a restart of the server.

A call waits in short long-polls; between them `poll` is called, which may draw progress or raise to stop waiting.
Connection errors are retried for `patience_s`, in which a supervisor may start the server again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from quintain.codec import from_json, pack, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.canary import Canary
from quintain.rollout.engines.base import Weights
from quintain.rollout.wire import (
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

Poll = Callable[[Progress | None], None]


class RolloutClient:
    """Talks to the rollout server at `url`. Raises FailureError with the server's own failure."""

    def __init__(self, url: str, *, patience_s: float = 120.0, poll: Poll = lambda progress: None) -> None:
        self.url, self.patience_s, self.poll = url, patience_s, poll
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(60.0, read=600.0))

    def health(self) -> Health:
        """Who is there."""
        return from_json(self._call("GET", "/health").content, Health)

    def stats(self) -> Stats:
        """The server's counters."""
        return from_json(self._call("GET", "/v1/stats").content, Stats)

    def publish(self, weights: Weights, canary: Canary, *, admit: bool = True) -> PublishAnswer:
        """Put `weights` in force; FailureError (stage publish) where the canary refuses."""
        body = PublishRequest(str(weights.path), weights.version, canary.rows, canary.logprobs, canary.tolerance, admit)
        return from_json(self._call("POST", "/v1/publish", pack(body)).content, PublishAnswer)

    def admit(self, version: int) -> None:
        """Start what the staleness rule allows at `version`."""
        self._call("POST", "/v1/admit", pack(AdmitRequest(version)))

    def batch(self, step: int) -> list[Group]:
        """The groups of `step`, once they are complete; the same ones each time. Lost where weights are needed."""
        return self._await(f"/v1/batches/{step}")

    def run_tasks(
        self, split: str, indices: Sequence[int], *, samples: int = 1, temperature: float = 0.0, seed: int = 0
    ) -> list[Group]:
        """Evaluate: `samples` episodes of each task. Lost where the server started again meanwhile."""
        body = RunRequest(split, tuple(indices), samples, temperature, seed)
        answer = self._call("POST", "/v1/runs", pack(body))
        return self._await(f"/v1/runs/{answer.json()['run']}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _await(self, path: str) -> list[Group]:
        while True:
            answer = self._call("GET", f"{path}?wait_s=1")
            if answer.status_code != 202:
                return unpack(answer.content, list[Group])
            self.poll(from_json(answer.content, Progress))

    def _call(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                answer = self._http.request(method, path, content=body)
                break
            except httpx.TransportError as error:
                self.poll(None)
                if time.monotonic() > deadline:
                    message = f"the rollout server at {self.url} does not answer: {type(error).__name__}"
                    raise FailureError(Failure.of(FailureKind.UNREACHABLE, Stage.GENERATE, message)) from None
                time.sleep(0.2)
        if answer.is_success:
            return answer
        raise FailureError(_refusal(answer))


def _refusal(answer: httpx.Response) -> Failure:
    try:
        refusal: Any = from_json(answer.content, Refusal)
    except QuintainError:
        message = f"the rollout server answered {answer.status_code} without a failure"
        return Failure.of(FailureKind.INVALID, Stage.GENERATE, message)
    failure: Failure = refusal.failure
    return failure
