"""Environments behind a URL.

    client = EnvClient("http://127.0.0.1:8000")      # one pool of connections for any number of episodes
    env = client.episode()                           # or RemoteEnv(url), with a pool of its own
    observation = await env.reset(client.tasks("train")[0], seed=0)

What always holds: `RemoteEnv` does what the class itself would do; whatever breaks is a `FailureError`, within a
bounded time; repeating a request never plays a turn twice. Of several servers an episode is played on one: the one
with the fewest, of those that answer; what is lost with a server are the episodes on it. The task at an index is the
one the server has there, marked with its origin and without its reference; a page of tasks is fetched when one of
them is first looked at, and kept a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self, TypeVar, overload

from quintain.calling.caller import Caller
from quintain.calling.retry import RetryPolicy
from quintain.codec import to_json
from quintain.envs.base import Action, Environment, Observation, Step, out_of_turn
from quintain.envs.serving.wire import (
    CreateEpisode,
    EpisodeCreated,
    EpisodeStatus,
    ForkRequest,
    Metadata,
    StepAnswer,
    StepRequest,
    TaskPage,
)
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.task import EndlessTasks, Task, TaskSource

T = TypeVar("T")

CLOSE_S = 5.0
RENEWALS = 3
"""How often a lease is renewed while it would run out once."""
DOWN_S = 10.0
"""How long a server that did not answer is left alone, where there are others."""


@dataclass(slots=True, eq=False)
class _Server:
    caller: Caller
    playing: set[str] = field(default_factory=set)  # episodes that have not ended
    down_until: float = -math.inf


class EnvClient:
    """A server's address, or those of several of the same, and pools of connections that all episodes share.

    Calling it makes an episode. `url` may be several, in a sequence or with commas in between; `token` is that of all.
    `timeout_s` bounds every call, `patience_s` how long an unreachable server is asked again. Raises QuintainError for
    what is no address.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        *,
        timeout_s: float = 300.0,
        patience_s: float = 10.0,
        max_connections: int = 256,
    ) -> None:
        self._policy = RetryPolicy(timeout_s, patience_s)
        urls = url.split(",") if isinstance(url, str) else url
        self._servers = [
            _Server(
                Caller(
                    each.strip(),
                    token,
                    server="environment server",
                    policy=self._policy,
                    max_connections=max_connections,
                    seed=number,
                    multiplexed=True,
                )
            )
            for number, each in enumerate(urls)
        ]
        self._homes: dict[str, _Server] = {}
        self.url = ",".join(server.caller.url for server in self._servers)

    def episode(self) -> RemoteEnv:
        """An environment that runs on the server."""
        return RemoteEnv(self)

    __call__ = episode

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`, fetched a page at a time when they are looked at: that blocks for a moment."""
        return remote_tasks(split, self.page)

    async def metadata(self) -> Metadata:
        """Which environment the server has. Raises FailureError."""
        server = self._upright()[0]
        return server.caller.parsed(await server.caller.call("GET", "/metadata", Stage.TASKS), Metadata, Stage.TASKS)

    async def aclose(self) -> None:
        """Close the connections. The next call opens new ones."""
        for server in self._servers:
            await server.caller.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def places(self) -> int | None:
        """How many episodes the servers play at a time, without an event loop; None where they do not say.

        Raises FailureError.
        """
        each = self._told("/metadata", {}, Metadata).places
        return None if each is None else each * len(self._servers)

    async def create(self, request: CreateEpisode) -> EpisodeCreated:
        """Begin an episode, on another server where one is not there. Raises FailureError."""
        *others, last = self._upright()
        for server in others:
            try:
                return await self._create(server, request, RetryPolicy(self._policy.timeout_s, 0.0))
            except FailureError as error:
                if error.failure.kind is not FailureKind.UNREACHABLE:
                    raise
                server.down_until = time.monotonic() + DOWN_S
        return await self._create(last, request, self._policy)

    async def _create(self, server: _Server, request: CreateEpisode, policy: RetryPolicy) -> EpisodeCreated:
        caller = server.caller
        # those that wait in the server's queue must not keep the steps that free a slot from a connection
        creating = caller.here().creating
        try:
            async with asyncio.timeout(policy.timeout_s):
                await creating.acquire()
        except TimeoutError:
            message = f"{caller.url} did not begin the episodes before this one within {policy.timeout_s:g} s"
            raise FailureError.of(FailureKind.TIMEOUT, Stage.RESET, message) from None
        if request.episode_id is not None:  # first: one that is cancelled is dismissed there too
            self._lives(request.episode_id, server)
        try:
            created = caller.parsed(
                await caller.call("POST", "/v1/episodes", Stage.RESET, to_json(request), policy),
                EpisodeCreated,
                Stage.RESET,
            )
        except FailureError:
            server.playing.discard(request.episode_id or "")
            raise
        finally:
            creating.release()
        self._lives(created.episode_id, server)
        return created

    async def step(self, episode: str, request: StepRequest) -> StepAnswer:
        """Play a turn. Raises FailureError."""
        server = self._home(episode)
        body = await server.caller.call("POST", f"/v1/episodes/{episode}/step", Stage.STEP, to_json(request))
        answer = server.caller.parsed(body, StepAnswer, Stage.STEP)
        if answer.terminated or answer.truncated:
            server.playing.discard(episode)
        return answer

    async def fork(self, episode: str, request: ForkRequest) -> EpisodeStatus:
        """Begin an episode that has played the first turns of another, on the same server. Raises FailureError."""
        server = self._home(episode)
        body = await server.caller.call("POST", f"/v1/episodes/{episode}/fork", Stage.RESET, to_json(request))
        forked = server.caller.parsed(body, EpisodeStatus, Stage.RESET)
        self._lives(forked.episode_id, server)
        return forked

    async def renew(self, episode: str) -> None:
        """Say that somebody still plays the episode, if the server can be reached at once. Raises FailureError."""
        policy = RetryPolicy(CLOSE_S, 0.0)
        await self._home(episode).caller.call("GET", f"/v1/episodes/{episode}", Stage.STEP, policy=policy)

    async def dismiss(self, episode: str) -> None:
        """Close an episode, if the server can be reached at once; if not, its lease will."""
        policy = RetryPolicy(timeout_s=CLOSE_S, patience_s=0.0)
        caller = self._home(episode).caller
        self.forget(episode)
        with contextlib.suppress(FailureError):
            await caller.call("DELETE", f"/v1/episodes/{episode}", Stage.CLOSE, policy=policy)

    def forget(self, episode: str) -> None:
        """Nobody will ask about the episode any more."""
        if (server := self._homes.pop(episode, None)) is not None:
            server.playing.discard(episode)

    def page(self, split: str, start: int, count: int) -> TaskPage:
        """Tasks of `split`, without an event loop. Raises FailureError."""
        return self._told("/v1/tasks", {"split": split, "start": start, "count": count}, TaskPage)

    def _told(self, path: str, params: dict[str, str | int], kind: type[T]) -> T:
        """What a server answers, another where one does not."""
        *others, last = (server.caller for server in self._upright())
        for caller in others:
            with contextlib.suppress(FailureError):
                answer = caller.call_sync("GET", path, Stage.TASKS, params=params, policy=RetryPolicy(patience_s=0))
                return caller.parsed(answer.content, kind, Stage.TASKS)
        answer = last.call_sync("GET", path, Stage.TASKS, params=params)
        return last.parsed(answer.content, kind, Stage.TASKS)

    def _upright(self) -> list[_Server]:
        """The servers, those first that answered when last asked, and of these the one that plays the fewest."""
        now = time.monotonic()
        return sorted(self._servers, key=lambda server: (server.down_until > now, len(server.playing)))

    def _home(self, episode: str) -> _Server:
        return self._homes.get(episode, self._servers[0])

    def _lives(self, episode: str, server: _Server) -> None:
        self._homes[episode] = server
        server.playing.add(episode)


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
        self._lease_s = math.inf

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
        try:
            created = await self._client.create(request)
        except QuintainError as error:
            raise FailureError.of(FailureKind.REJECTED, Stage.RESET, str(error)) from None
        self.task_id, self._lease_s = created.task_id, created.lease_s
        return created.observation

    async def step(self, action: Action) -> Step:
        """Play a turn on the server. Raises FailureError."""
        if self._episode is None:
            raise out_of_turn(begun=False)
        answer = await self._client.step(self._episode, StepRequest(self._turn, action))
        self._turn = answer.turn
        self._ended = answer.terminated or answer.truncated
        return Step(answer.observation, answer.reward, answer.terminated, answer.truncated, answer.info, answer.others)

    async def fork(self, turn: int | None = None) -> RemoteEnv:
        """Another episode that has played the first `turn` turns of this one, or all, and goes on from there.

        Unless the environment knows a cheaper way, the server plays them again, so it is one that does the same again.
        Raises FailureError.
        """
        if self._episode is None:
            raise FailureError.of(FailureKind.REJECTED, Stage.RESET, "a fork before the first reset")
        other = RemoteEnv(self._client)
        other._episode = uuid.uuid4().hex  # first, as in `reset`
        forked = await self._client.fork(
            self._episode, ForkRequest(self._turn if turn is None else turn, other._episode)
        )
        other.task_id, other._turn, other._lease_s = self.task_id, forked.turn, forked.lease_s
        return other

    async def keep_lease(self) -> None:
        """Renew the episode's lease for as long as this runs: until it is cancelled, or the episode is gone."""
        while self._episode is not None and not self._ended:
            await asyncio.sleep(self._lease_s / RENEWALS)
            if self._episode is not None and not self._ended:
                with contextlib.suppress(FailureError):  # the next step says what is wrong
                    await self._client.renew(self._episode)

    async def close(self) -> None:
        """Close the episode; one that has ended is closed already."""
        await self._dismiss()
        if self._own:
            await self._client.aclose()

    async def _dismiss(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None and self._ended:
            self._client.forget(episode)
        elif episode is not None:
            await self._client.dismiss(episode)


PAGE = 256
PAGES_KEPT = 64

Fetch = Callable[[str, int, int], TaskPage]


def remote_tasks(split: str, fetch: Fetch) -> TaskSource:
    """The tasks of `split`, read with `fetch(split, start, count)`, which may raise FailureError."""

    @lru_cache(PAGES_KEPT)
    def page(number: int) -> TaskPage:
        return fetch(split, number * PAGE, PAGE)

    def task(index: int) -> Task:
        number, at = divmod(index, PAGE)
        return page(number).tasks[at].task()

    size = page(0).size
    return EndlessTasks(task) if size is None else RemoteTasks(task, size)


class RemoteTasks(Sequence[Task]):
    """A finite split of a server, of which `task` gives each."""

    def __init__(self, task: Callable[[int], Task], size: int) -> None:
        self._task, self._size = task, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self._task(i) for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"there are {self._size} tasks: no index {index}")
        return self._task(index % self._size)
