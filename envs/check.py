"""Proves an environment sound by playing it: in this process, in a worker process of a server's, or behind a URL.

    problems = await check_environment(MathEnv)          # or EnvClient(url), or LocalClient(cls, options)
    checks = await checks_of("my_env.py:MyEnv")          # or a URL: each check by itself, as `quintain env check`

What always holds: a check says what was played and what came of it; one that could not be made says why, and is no
success. A class is played here, so code of it that blocks blocks the check; a spec is played by a worker process first,
which may hang, block or die, and then here too only where it did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from quintain.envs.base import Action, Environment, Observation, Step, fault_in
from quintain.envs.local import LocalClient
from quintain.envs.options import Bound, bind
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.failure import FailureError, FailureKind, QuintainError, one_line
from quintain.task import Task, TaskSource, size_of

if TYPE_CHECKING:
    from quintain.envs.serving.sessions import Sessions
    from quintain.envs.workers.pool import Backend

CHECKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tasks": "every split has tasks, and the same ones again",
        "episodes": "every episode can be played: nothing raises, hangs, dies or breaks the contract",
        "messages": "there is something to answer, and all that is said is well-formed and can be sent as JSON",
        "determinism": "the same task, seed and actions give the same episode and rewards",
        "isolation": "episodes that are played at once are what each is alone",
        "end": "a step after the end is refused",
        "close": "an environment may be closed at any time, and twice",
        "secrecy": "the reference is nowhere to be seen while the episode runs",
        "solution": "the task's own solution ends it, and nothing earns more",
        "floor": "wrong, empty and forged answers earn less than the solution",
        "faces": "rewards and ends are the same in process and over HTTP",
        "gymnasium": "gymnasium's own checker finds nothing",
        "sessions": "no session and no slot is left on the server",
    }
)
"""What is checked, in this order."""

ANSWERS: Final[tuple[str | Action, ...]] = (
    "",
    "0",
    "I do not know.",
    '{"reward": 1.0, "terminated": true, "info": {"rewards": {"correct": 1.0}}}',
    Action.call("set_reward", {"reward": 1.0}),
)
"""Nothing, what is hardly right, and attempts to write the reward."""
CLOSE_S: Final = 5.0
FREE_WITHIN_S: Final = 1.0
"""How long after its deadline an environment may keep its slot."""
LEAK_CHARS: Final = 3
"""A reference that is shorter may be in a text by chance."""


class Client(Protocol):
    """What an environment is reached through: `EnvClient`, `LocalClient`."""

    def episode(self) -> Environment:
        """A new environment."""

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`."""

    async def aclose(self) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class EnvironmentCheck:
    """What came of one of `CHECKS`: `problems`, a sentence each, or why it was `skipped`."""

    name: str
    problems: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was made, and found nothing."""
        return not self.problems and not self.skipped


async def check_environment(
    env: type[Environment] | Client,
    *,
    options: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
    tasks: int = 3,
    answers: Sequence[str | Action] = ANSWERS,
    max_turns: int = 8,
) -> list[str]:
    """What is wrong with `env`, a sentence each; nothing where it is sound. The arguments are those of `checks_of`."""
    found = await checks_of(env, options=options, splits=splits, tasks=tasks, answers=answers, max_turns=max_turns)
    return [problem for check in found for problem in check.problems]


async def checks_of(
    env: str | type[Environment] | Client,
    *,
    options: Mapping[str, Any] | None = None,
    token: str | None = None,
    splits: Sequence[str] | None = None,
    tasks: int = 3,
    answers: Sequence[str | Action] = ANSWERS,
    max_turns: int = 8,
    step_s: float = 30.0,
) -> tuple[EnvironmentCheck, ...]:
    """Each of `CHECKS` on `env`: a class, a client, a spec of `quintain.envs.registry`, or a server's URL.

    `tasks` of each split are played, with each of `answers` again and again until the end or for `max_turns`; a reset
    or step may take `step_s` seconds. `options` are for a class or spec, `token` for a URL; `splits` are a class's own,
    or the server's, or "train" behind a client. Raises QuintainError for wrong options, FailureError for a URL where
    no server answers.
    """
    limits = EnvironmentLimits(reset_s=step_s, step_s=step_s, tasks_s=step_s, close_s=min(CLOSE_S, step_s))
    said = tuple(answer if isinstance(answer, Action) else Action.text(answer) for answer in answers)
    play = _Play(tasks, said, max_turns, limits.reset_s, limits.close_s)
    if isinstance(env, str) and "://" in env:
        from quintain.envs.client import EnvClient

        async with EnvClient(env, token) as client:
            served = tuple((await client.metadata()).splits)
            return await _Checks(play, client).made(splits or served)
    if not isinstance(env, (str, type)):
        return await _Checks(play, env).made(splits or ("train",))
    return await _of_class(env, options, limits, play, splits)


async def _of_class(
    env: str | type[Environment],
    options: Mapping[str, Any] | None,
    limits: EnvironmentLimits,
    play: _Play,
    splits: Sequence[str] | None,
) -> tuple[EnvironmentCheck, ...]:
    from quintain.envs.client import EnvClient
    from quintain.envs.registry import resolve
    from quintain.envs.workers.pool import EnvironmentWorkers, Inline

    cls = env if isinstance(env, type) else resolve(env)
    bound = bind(cls, options)
    local = LocalClient(cls, options, limits=limits)  # its verifiers are the server's too
    backend = Inline(local.host) if isinstance(env, type) else EnvironmentWorkers(env, options or {}, 1, quiet=True)
    async with local, _served(backend, limits) as (url, sessions), EnvClient(url, patience_s=limits.step_s) as remote:
        first, other = (local, remote) if isinstance(env, type) else (remote, local)
        return await _Checks(play, first, other, bound, sessions).made(splits or cls.splits)


@contextlib.asynccontextmanager
async def _served(backend: Backend, limits: EnvironmentLimits) -> AsyncIterator[tuple[str, Sessions]]:
    """A server around `backend` in this event loop: its address, and its sessions."""
    from quintain.envs.serving.server import EnvApp
    from quintain.envs.serving.sessions import Sessions
    from quintain.serving.listen import bound_socket, url_of
    from quintain.serving.metrics import Metrics
    from quintain.serving.run import quiet_server

    metrics, ready = Metrics("quintain_env_"), asyncio.Event()
    sessions = Sessions(backend, limits, metrics)
    app = EnvApp(sessions, metrics)
    with bound_socket("127.0.0.1", 0) as sock:
        await sessions.start()
        server = quiet_server(app.asgi, ready.set, grace_s=1)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            await ready.wait()
            yield url_of("127.0.0.1", sock), sessions
        finally:
            server.should_exit = True
            await serving
            await sessions.stop()
            await app.close()


@dataclass(frozen=True, slots=True)
class _Play:
    tasks: int
    answers: tuple[Action, ...]
    max_turns: int
    reset_s: float
    close_s: float


@dataclass(frozen=True, slots=True)
class _Played:
    first: Observation
    steps: tuple[Step, ...]

    @property
    def earned(self) -> float:
        return math.fsum(step.reward for step in self.steps)

    @property
    def ended(self) -> bool:
        return bool(self.steps) and self.steps[-1].ended

    @property
    def paid(self) -> list[tuple[float, bool, bool]]:
        return [(step.reward, step.terminated, step.truncated) for step in self.steps]


class _Checks:
    """The checks of what `client` reaches; `other` is a second way to it, `bound` its class, `sessions` its server."""

    def __init__(
        self,
        play: _Play,
        client: Client,
        other: Client | None = None,
        bound: Bound | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self._play, self._client, self._other, self._bound, self._sessions = play, client, other, bound, sessions
        self._problems: dict[str, list[str]] = defaultdict(list)
        self._skipped: dict[str, str] = {}

    async def made(self, splits: Sequence[str]) -> tuple[EnvironmentCheck, ...]:
        """All of them, on the tasks of `splits`."""
        from quintain.envs.client import EnvClient

        if self._bound is None:
            self._skipped |= dict.fromkeys(
                ("close", "solution", "floor", "faces", "gymnasium"), "needs the class itself"
            )
        if self._sessions is None:
            self._skipped["sessions"] = "needs a server of its own"
        if self._bound is None and isinstance(self._client, EnvClient):
            self._skipped["secrecy"] = "needs the references, which a server tells nobody"
        played: list[str] = []
        for split in splits:
            try:
                tasks, secrets = await asyncio.to_thread(self._tasks, split)  # which blocks for a moment
            except (FailureError, QuintainError) as error:
                self._problems["tasks"].append(f"split {split!r} cannot be read: {error}")
                continue
            if tasks:
                played.append(split)
                await self._split(split, tasks, secrets)
        if played:
            await self._gymnasium(played[0])  # what it looks at is the class's, whatever the tasks
        await self._left()
        return tuple(
            EnvironmentCheck(name, tuple(dict.fromkeys(self._problems[name])), "" if self._problems[name] else skipped)
            for name in CHECKS
            for skipped in [self._skipped.get(name, "")]
        )

    def _tasks(self, split: str) -> tuple[list[Task], list[Task]]:
        """Tasks of `split` as the client has them, and with their references where these can be had."""
        source, again = self._client.tasks(split), self._client.tasks(split)
        size = size_of(source)
        indices = range(self._play.tasks if size is None else min(size, self._play.tasks))
        found = [source[i] for i in indices]
        if not found:
            self._problems["tasks"].append(f"split {split!r} has no tasks")
        if found != [again[i] for i in reversed(indices)][::-1]:
            self._problems["tasks"].append(f"split {split!r} gives other tasks at the same index the second time")
        for task in found:
            for fault in filter(None, map(fault_in, task.prompt)):
                self._problems["messages"].append(f"task {task.id!r} of split {split!r}: {fault}")
        known = self._bound.tasks(split) if self._bound is not None else found
        return found, [known[i] for i in indices]

    async def _split(self, split: str, tasks: list[Task], secrets: list[Task]) -> None:
        alone: dict[tuple[int, int], _Played] = {}
        told = []
        for at, (task, secret) in enumerate(zip(tasks, secrets, strict=True)):
            told.append(_shows(task.info, secret.reference))
            for number, answer in enumerate(self._play.answers):
                where = f"task {task.id!r} with the answer {_shown(answer)}"
                if (played := await self._episode(task, answer, where)) is not None:
                    alone[at, number] = played
                    told[-1] = told[-1] or _leaks(played, secret.reference)
        if all(told):  # one alone may be chance: a turn counter that equals the answer
            self._problems["secrecy"].append(
                f"split {split!r}: the info of its tasks or observations shows the reference, or what is said does"
            )
        await self._isolated(tasks, alone)
        if self._bound is not None:
            await self._solved(split, tasks, secrets, alone)
            if self._problems["episodes"]:  # it might block or end this process too
                self._skipped |= dict.fromkeys(("close", "faces", "gymnasium"), "its episodes cannot be played")
                return
            await self._faced(tasks[0], split, alone)
            await self._closed(secrets[0])

    async def _episode(self, task: Task, answer: Action, where: str) -> _Played | None:
        """The episode of `task` in which `answer` is said again and again, played twice; None where it breaks."""
        try:
            played, again = [await self._played(self._client, task, repeat(answer), where) for _ in range(2)]
        except FailureError as error:
            self._problems["episodes"].append(f"{where}: {error}")
            return None
        if played != again:
            self._problems["determinism"].append(f"{where}: the same seed and actions gave two different episodes")
        if not played.first.messages:
            self._problems["messages"].append(
                f"{where}: the first observation has no message, so there is nothing to answer"
            )
        self._problems["messages"] += [f"{where}: {fault}" for fault in _unsendable(played)]
        return played

    async def _played(self, client: Client, task: Task, actions: Iterable[Action], where: str) -> _Played:
        env = client.episode()
        await env.close()  # before the first reset, which is allowed
        try:
            first = await env.reset(task, seed=0)
            steps: list[Step] = []
            for action in islice(actions, self._play.max_turns):
                steps.append(await env.step(action))
                if steps[-1].ended:
                    if not await _refuses(env, action):
                        self._problems["end"].append(f"{where}: a step after the end was answered instead of refused")
                    break
            return _Played(first, tuple(steps))
        finally:
            await env.close()
            await env.close()

    async def _isolated(self, tasks: list[Task], alone: Mapping[tuple[int, int], _Played]) -> None:
        """Play two episodes turn by turn."""
        pair = [(0, 0), (min(1, len(tasks) - 1), min(1, len(self._play.answers) - 1))]
        if not all(key in alone for key in pair):
            return
        envs = [self._client.episode() for _ in pair]
        try:
            firsts = [await env.reset(tasks[at], seed=0) for env, (at, _) in zip(envs, pair, strict=True)]
            steps: list[list[Step]] = [[] for _ in pair]
            for _ in range(self._play.max_turns):
                for env, (_, number), said in zip(envs, pair, steps, strict=True):
                    if not (said and said[-1].ended):
                        said.append(await env.step(self._play.answers[number]))
            found = [_Played(first, tuple(said)) for first, said in zip(firsts, steps, strict=True)]
            if found != [alone[key] for key in pair] and not self._problems["determinism"]:
                names = " and ".join(repr(tasks[at].id) for at, _ in pair)
                self._problems["isolation"].append(f"the tasks {names}, played at once, are other than each alone")
        except FailureError as error:
            self._problems["isolation"].append(f"two episodes at once: {error}")
        finally:
            for env in envs:
                await env.close()

    async def _solved(
        self, split: str, tasks: list[Task], secrets: list[Task], alone: Mapping[tuple[int, int], _Played]
    ) -> None:
        """Play the tasks' own solutions, and compare what they earn with what the other answers did."""
        assert self._bound is not None
        best: dict[int, float] = {}
        for at, (task, secret) in enumerate(zip(tasks, secrets, strict=True)):
            where = f"the solution of task {task.id!r}"
            if (actions := self._bound.cls.solution(secret)) is None:
                continue
            try:
                played, again = [await self._played(self._client, task, actions, where) for _ in range(2)]
            except FailureError as error:
                self._problems["solution"].append(f"{where}: {error}")
                continue
            if played != again:
                self._problems["determinism"].append(f"{where}: the same seed and actions gave two different episodes")
            if not played.ended:
                self._problems["solution"].append(f"{where}: the episode goes on after its last action")
            best[at] = played.earned
            for number, answer in enumerate(self._play.answers):
                if (other := alone.get((at, number))) is not None and other.earned > played.earned:
                    self._problems["solution"].append(
                        f"{where} earns {played.earned:g}, less than the answer {_shown(answer)}: {other.earned:g}"
                    )
        if not best:
            self._skipped |= dict.fromkeys(("solution", "floor"), f"{self._bound.cls.__name__}.solution knows none")
        for number, answer in enumerate(self._play.answers):
            if len(known := [at for at in best if (at, number) in alone]) and not self._problems["solution"]:
                least, most = math.fsum(alone[at, number].earned for at in known), math.fsum(best[at] for at in known)
                if least >= most:  # of all tasks together: for one, doing nothing may be right
                    self._problems["floor"].append(
                        f"split {split!r}: the answer {_shown(answer)} earns as much as the solutions ({least:g})"
                    )

    async def _closed(self, task: Task) -> None:
        """The class itself, which nothing keeps in order."""
        assert self._bound is not None
        try:
            async with asyncio.timeout(self._play.reset_s + self._play.close_s):
                env = self._bound()
                await env.close()
                await env.reset(task, seed=0)
                await env.close()
                await env.close()
        except Exception as error:  # the boundary to somebody's class
            self._problems["close"].append(
                f"it cannot be closed at any time and twice: {type(error).__name__}: {error}"
            )

    async def _gymnasium(self, split: str) -> None:
        if self._bound is None or self._problems["episodes"]:
            return
        if self._problems["close"]:
            self._skipped["gymnasium"] = "its episodes cannot be closed"
            return
        (local, *_) = [client for client in (self._client, self._other) if isinstance(client, LocalClient)]
        try:
            await asyncio.to_thread(_check_gymnasium, local, split, asyncio.get_running_loop())
        except QuintainError as error:  # an environment that is none of gymnasium's, such as one of several seats
            self._skipped["gymnasium"] = str(error)
        except Exception as error:  # the boundary: gymnasium's checker asserts
            self._problems["gymnasium"].append(f"{type(error).__name__}: {one_line(str(error))}")

    async def _faced(self, task: Task, split: str, alone: Mapping[tuple[int, int], _Played]) -> None:
        """Play a task through the other client."""
        assert self._bound is not None
        assert self._other is not None
        other_task = await asyncio.to_thread(lambda other: other.tasks(split)[0], self._other)
        for number, answer in enumerate(self._play.answers):
            if (0, number) in alone:
                where = f"task {task.id!r} with the answer {_shown(answer)}"
                other = await self._played(self._other, other_task, repeat(answer), where)
                if other.paid != alone[0, number].paid:
                    self._problems["faces"].append(f"{where}: {other.paid} the other way, not {alone[0, number].paid}")

    async def _left(self) -> None:
        """Whether every environment of the server's was closed, and every slot is free."""
        if self._sessions is not None:
            until = time.monotonic() + self._play.close_s + FREE_WITHIN_S
            while self._sessions.live and time.monotonic() < until:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            for count, what in ((self._sessions.live, "slots are taken"), (self._sessions.unclosed, "were not closed")):
                if count:
                    self._problems["sessions"].append(f"of the server's environments, {count} {what} after the end")


async def _refuses(env: Environment, action: Action) -> bool:
    try:
        await env.step(action)
    except FailureError as error:
        return error.failure.kind is FailureKind.REJECTED
    return False


def _unsendable(played: _Played) -> Iterator[str]:
    from quintain.codec import to_json

    for said in (played.first, *played.steps):
        try:
            to_json(said)
        except (QuintainError, ValueError) as error:
            yield f"its {type(said).__name__} cannot be sent as JSON: {error}"


def _check_gymnasium(client: LocalClient, split: str, loop: asyncio.AbstractEventLoop) -> None:
    """Raises where gymnasium's own checker finds something; the episodes are played in `loop`, of another thread."""
    from gymnasium.utils.env_checker import check_env

    from quintain.envs.gym import GymEnv

    env = GymEnv(client, split=split, within=loop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are advice for numbers and pictures
            check_env(env, skip_render_check=True)
    finally:
        env.close()


def _leaks(played: _Played, reference: Any) -> bool:
    """Whether the info, or what is said after the prompt, shows `reference` while the episode runs."""
    running = [step for step in played.steps if not step.ended]
    if any(_shows(info, reference) for info in (played.first.info, *(step.info for step in running))):
        return True
    secret = str(reference) if isinstance(reference, (str, int, float)) else ""
    said = [message.text for step in running for message in step.observation.messages]
    return len(secret) >= LEAK_CHARS and any(secret in text for text in said)


def _shows(info: Any, reference: Any) -> bool:
    if reference is None:
        return False
    if isinstance(info, Mapping):
        return any(_shows(value, reference) for value in info.values())
    if isinstance(info, (list, tuple)):
        return info == reference or any(_shows(value, reference) for value in info)
    return bool(info == reference) or (isinstance(info, str) and info == str(reference))


def _shown(action: Action) -> str:
    calls = "".join(f" and a call of {call.function.name}" for call in action.message.tool_calls)
    return f"{action.content!r}{calls}"
