"""Environments behind a URL.

    client = EnvClient("http://127.0.0.1:8000")      # one pool of connections for any number of episodes
    env = client.episode()                           # or RemoteEnv(url), with a pool of its own
    observation = await env.reset(client.tasks("train")[0], seed=0)

What always holds: `RemoteEnv` does what the class itself would do; whatever breaks is a `FailureError`,
within a bounded time; repeating a request never plays a turn twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from quintain.codec import from_json, to_json
from quintain.envs.base import Action, Environment, Observation, Step
from quintain.envs.connections import Connections
from quintain.envs.remote_tasks import remote_tasks
from quintain.envs.retry import Retry, RetryPolicy
from quintain.envs.wire import (
    CreateEpisode,
    EpisodeCreated,
    FailureBody,
    Metadata,
    StepAnswer,
    StepRequest,
    TaskPage,
)
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.task import Task, TaskSource

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_S = 5.0
CLOSE_S = 5.0
RETRIED = frozenset({429, 502, 503})


class EnvClient:
    """A server's address and a pool of connections that all its episodes share. Calling it makes an episode.

    `timeout_s` bounds every call, `patience_s` how long an unreachable server is asked again. Waits between
    tries are drawn from `seed`. Raises QuintainError for what is no address.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 300.0,
        patience_s: float = 10.0,
        max_connections: int = 256,
        seed: int = 0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise QuintainError(f"an environment's address looks like http://127.0.0.1:8000, not {url!r}")
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._policy = RetryPolicy(timeout_s, patience_s)
        self._max_connections = max_connections
        self._rng = random.Random(seed)
        self._connections: Connections | None = None

    def episode(self) -> RemoteEnv:
        """An environment that runs on the server."""
        return RemoteEnv(self)

    __call__ = episode

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`, fetched a page at a time when they are looked at: that blocks for a moment."""
        return remote_tasks(split, self.page)

    async def metadata(self) -> Metadata:
        """Which environment the server has. Raises FailureError."""
        return self._parsed(await self.call("GET", "/metadata", Stage.TASKS), Metadata, Stage.TASKS)

    async def aclose(self) -> None:
        """Close the connections. The next call opens new ones."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def create(self, request: CreateEpisode) -> EpisodeCreated:
        """Begin an episode. Raises FailureError."""
        # those that wait in the server's queue must not keep the steps that free a slot from a connection
        creating = self._here().creating
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                await creating.acquire()
        except TimeoutError:
            message = f"{self.url} did not begin the episodes before this one within {self._policy.timeout_s:g} s"
            raise FailureError(Failure.of(FailureKind.TIMEOUT, Stage.RESET, message)) from None
        try:
            body = await self.call("POST", "/v1/episodes", Stage.RESET, to_json(request))
        finally:
            creating.release()
        return self._parsed(body, EpisodeCreated, Stage.RESET)

    async def step(self, episode: str, request: StepRequest) -> StepAnswer:
        """Play a turn. Raises FailureError."""
        body = await self.call("POST", f"/v1/episodes/{episode}/step", Stage.STEP, to_json(request))
        return self._parsed(body, StepAnswer, Stage.STEP)

    async def dismiss(self, episode: str) -> None:
        """Close an episode, if the server can be reached at once; if not, its lease will."""
        policy = RetryPolicy(timeout_s=CLOSE_S, patience_s=0.0)
        with contextlib.suppress(FailureError):
            await self.call("DELETE", f"/v1/episodes/{episode}", Stage.CLOSE, policy=policy)

    async def call(
        self, method: str, path: str, stage: Stage, body: str | None = None, policy: RetryPolicy | None = None
    ) -> bytes:
        """The body of the answer, asking again where that can help. Raises FailureError."""
        import httpx

        retry = Retry(policy or self._policy, self._rng, time.monotonic())
        connections = self._here()
        while True:
            left_s = retry.left(time.monotonic())
            timeout = httpx.Timeout(left_s, connect=min(CONNECT_S, left_s))
            try:
                async with asyncio.timeout(left_s), connections.one() as connection:
                    response = await connection.request(method, path, content=body, timeout=timeout)
            except (httpx.TransportError, TimeoutError) as error:
                wait_s = retry.silent(self._silence(error, stage), time.monotonic())
            else:
                if response.is_success:
                    return response.content
                wait_s = self._refusal(response, stage, retry)
            await asyncio.sleep(wait_s)

    def page(self, split: str, start: int, count: int) -> TaskPage:
        """Tasks of `split`, without an event loop. Raises FailureError."""
        import httpx

        retry = Retry(self._policy, self._rng, time.monotonic())
        params: dict[str, str | int] = {"split": split, "start": start, "count": count}
        with httpx.Client(**self._settings()) as client:
            while True:
                timeout = httpx.Timeout(retry.left(time.monotonic()), connect=CONNECT_S)
                try:
                    response = client.get("/v1/tasks", params=params, timeout=timeout)
                except httpx.TransportError as error:
                    wait_s = retry.silent(self._silence(error, Stage.TASKS), time.monotonic())
                else:
                    if response.is_success:
                        return self._parsed(response.content, TaskPage, Stage.TASKS)
                    wait_s = self._refusal(response, Stage.TASKS, retry)
                time.sleep(wait_s)

    def _here(self) -> Connections:
        """The connections of the running event loop."""
        if self._connections is None or self._connections.loop is not asyncio.get_running_loop():
            self._connections = Connections(self._settings(), self._max_connections)
        return self._connections

    def _settings(self) -> dict[str, Any]:
        # a proxy for the world outside is none for a service of ours; certificates are read only where they matter
        return {
            "base_url": self.url,
            "headers": {"content-type": "application/json", **self._headers},
            "trust_env": False,
            "verify": self.url.startswith("https"),
        }

    def _silence(self, error: Exception, stage: Stage) -> Failure:
        import httpx

        slow = isinstance(error, (httpx.ReadTimeout, TimeoutError))
        kind = FailureKind.TIMEOUT if slow else FailureKind.UNREACHABLE
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return Failure.of(kind, stage, f"no answer from the environment server at {self.url} ({said})")

    def _refusal(self, response: httpx.Response, stage: Stage, retry: Retry) -> float:
        """How long to wait before asking again, or FailureError with what the server said."""
        try:
            body: FailureBody = from_json(response.content, FailureBody)
            failure = body.failure
        except QuintainError:
            text = one_line(response.text, 80)
            message = f"{self.url} answered {response.status_code} {text!r}: is it an environment server?"
            kind = FailureKind.UNREACHABLE if response.status_code in RETRIED else FailureKind.INVALID
            failure = Failure.of(kind, stage, message)
        if response.status_code not in RETRIED:
            raise FailureError(failure)
        try:
            retry_after_s = float(response.headers.get("retry-after", "0"))
        except ValueError:  # a date: our own waits do as well
            retry_after_s = 0.0
        return retry.refused(failure, time.monotonic(), retry_after_s)

    def _parsed(self, body: bytes, kind: type[T], stage: Stage) -> T:
        try:
            return from_json(body, kind)
        except (QuintainError, FailureError) as error:
            message = f"the answer of {self.url} is no {kind.__name__}: {error}"
            raise FailureError(Failure.of(FailureKind.INVALID, stage, message)) from None


class RemoteEnv(Environment):
    """An environment that runs behind a URL, used like the class itself, `tasks` included.

    `server` is an `EnvClient` to share its connections, or a URL (then `token` and the client's other options
    may follow, and `close` closes the connections too). A task that came from `tasks` travels as its place in
    its split, any other in full.
    """

    def __init__(self, server: str | EnvClient, token: str | None = None, **options: Any) -> None:
        self._own = isinstance(server, str)
        self._client = EnvClient(server, token, **options) if isinstance(server, str) else server
        self._episode: str | None = None
        self._turn = 0
        self._ended = False

    def tasks(self, split: str) -> TaskSource:  # type: ignore[override]  # the server's, so an instance's
        """The server's tasks of `split`."""
        return self._client.tasks(split)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin an episode on the server. Raises FailureError."""
        await self._dismiss()
        episode = uuid.uuid4().hex
        if task.origin is not None and task.reference is None:
            place = task.origin
            request = CreateEpisode(split=place.split, index=place.index, seed=seed, episode_id=episode)
        else:
            request = CreateEpisode(task=task, seed=seed, episode_id=episode)
        self._episode, self._turn, self._ended = episode, 0, False  # first: a reset that is cancelled is closed too
        return (await self._client.create(request)).observation

    async def step(self, action: Action) -> Step:
        """Play a turn on the server. Raises FailureError."""
        if self._episode is None:
            message = "a step before the first reset: reset first"
            raise FailureError(Failure.of(FailureKind.REJECTED, Stage.STEP, message))
        answer = await self._client.step(self._episode, StepRequest(self._turn, action))
        self._turn = answer.turn
        self._ended = answer.terminated or answer.truncated
        return Step(answer.observation, answer.reward, answer.terminated, answer.truncated, answer.info)

    async def close(self) -> None:
        """Close the episode; one that has ended is closed already."""
        await self._dismiss()
        if self._own:
            await self._client.aclose()

    async def _dismiss(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None and not self._ended:
            await self._client.dismiss(episode)
