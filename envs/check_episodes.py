"""The checks of an environment that are made by playing it: each finds what is wrong, in sentences.

What always holds: an episode that breaks fails a check and ends none; every episode that is begun is closed.
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from quintain.envs.base import Action, Environment, Observation, Step, fault_in
from quintain.envs.local import LocalClient
from quintain.envs.options import Bound
from quintain.failure import FailureError, FailureKind, QuintainError, one_line
from quintain.messages import ToolSpec
from quintain.task import Task, TaskSource, size_of

if TYPE_CHECKING:
    from quintain.envs.serving.sessions import Sessions

Say = Callable[[Observation], Sequence[Action]]
"""The actions of an episode that begins with this observation."""
Found = tuple[Mapping[str, Sequence[str]], Mapping[str, str]]
"""Problems, by the name of their check, and why a check was not made. The first has every name."""
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
class Play:
    """How much is played: `tasks` of each split, each with `answers` again and again for `max_turns` at most."""

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


class EpisodeChecks:
    """The checks of what `client` reaches; `other` is a second way to it, `bound` its class, `sessions` its server."""

    def __init__(
        self,
        play: Play,
        client: Client,
        other: Client | None = None,
        bound: Bound | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self._play, self._client, self._other, self._bound, self._sessions = play, client, other, bound, sessions
        self._problems: dict[str, list[str]] = defaultdict(list)
        self._skipped: dict[str, str] = {}

    async def made(self, splits: Sequence[str]) -> Found:
        """What came of all of them, on the tasks of `splits`."""
        from quintain.envs.client import EnvClient

        if self._bound is None:
            self._skipped |= dict.fromkeys(
                ("fork", "close", "solution", "floor", "faces", "gymnasium"), "needs the class itself"
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
        return self._problems, self._skipped

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
                if (played := await self._episode(task, partial(self._said, answer), where)) is not None:
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
                self._skipped |= dict.fromkeys(("fork", "close", "faces", "gymnasium"), "its episodes cannot be played")
                return
            await self._faced(tasks[0], split, alone)
            await self._forked(split)
            await self._closed(secrets[0])

    def _said(self, answer: Action, first: Observation) -> list[Action]:
        """What is said in an episode that begins so: `answer` again and again; where it is a call, of each tool too."""
        once = [answer, *map(_call, first.tools)] if answer.message.tool_calls else [answer]
        return (once * self._play.max_turns)[: max(self._play.max_turns, len(once))]

    async def _episode(self, task: Task, say: Say, where: str, check: str = "episodes") -> _Played | None:
        """The episode of `task` in which this is said, played twice; None where it breaks, which fails `check`."""
        try:
            played, again = [await self._played(self._client, task, say, where) for _ in range(2)]
        except FailureError as error:
            self._problems[check].append(f"{where}: {error}")
            return None
        if played != again:
            self._problems["determinism"].append(f"{where}: the same seed and actions gave two different episodes")
        if not played.first.messages:
            self._problems["messages"].append(
                f"{where}: the first observation has no message, so there is nothing to answer"
            )
        self._problems["messages"] += [f"{where}: {fault}" for fault in _unsendable(played)]
        return played

    async def _played(self, client: Client, task: Task, say: Say, where: str) -> _Played:
        env = client.episode()
        await env.close()  # before the first reset, which is allowed
        try:
            first = await env.reset(task, seed=0)
            steps: list[Step] = []
            for action in say(first):
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
            says = [
                self._said(self._play.answers[number], first) for first, (_, number) in zip(firsts, pair, strict=True)
            ]
            steps: list[list[Step]] = [[] for _ in pair]
            for turn in range(max(map(len, says))):
                for env, actions, said in zip(envs, says, steps, strict=True):
                    if turn < len(actions) and not (said and said[-1].ended):
                        said.append(await env.step(actions[turn]))
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
            if (played := await self._episode(task, partial(_always, actions), where, "solution")) is None:
                continue
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
                try:
                    other = await self._played(self._other, other_task, partial(self._said, answer), where)
                except FailureError as error:
                    self._problems["faces"].append(f"{where}, the other way: {error}")
                    continue
                if other.paid != alone[0, number].paid:
                    self._problems["faces"].append(f"{where}: {other.paid} the other way, not {alone[0, number].paid}")

    async def _forked(self, split: str) -> None:
        """Play an episode to its end, and then another that was forked from it on its way."""
        from quintain.envs.client import EnvClient

        assert self._bound is not None
        if self._bound.cls.fork is Environment.fork:
            self._skipped["fork"] = f"{self._bound.cls.__name__} has no fork of its own"
            return
        (remote,) = [client for client in (self._client, self._other) if isinstance(client, EnvClient)]
        task = await asyncio.to_thread(lambda: remote.tasks(split)[0])
        for answer in self._play.answers:
            where = f"a fork of task {task.id!r} with the answer {_shown(answer)}"
            envs = [remote.episode()]
            try:
                await envs[0].reset(task, seed=0)
                if not (await envs[0].step(answer)).ended:
                    envs.append(await envs[0].fork())
                    steps = [await _to_the_end(env, answer, self._play.max_turns) for env in envs]
                    if steps[0] != steps[1]:
                        self._problems["fork"].append(f"{where}: it goes on otherwise")
            except FailureError as error:
                self._problems["fork"].append(f"{where}: {error}")
            for env in envs:
                await env.close()

    async def _left(self) -> None:
        """Whether every environment of the server's was closed, and every slot is free."""
        if self._sessions is not None:
            until = time.monotonic() + self._play.close_s + FREE_WITHIN_S
            while self._sessions.live and time.monotonic() < until:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            for count, what in ((self._sessions.live, "slots are taken"), (self._sessions.unclosed, "were not closed")):
                if count:
                    self._problems["sessions"].append(f"of the server's environments, {count} {what} after the end")


def _always(actions: Sequence[Action], first: Observation) -> Sequence[Action]:
    return actions


async def _to_the_end(env: Environment, answer: Action, max_turns: int) -> list[Step]:
    steps: list[Step] = []
    while len(steps) < max_turns and not (steps and steps[-1].ended):
        steps.append(await env.step(answer))
    return steps


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


def _call(spec: ToolSpec) -> Action:
    """A call of a tool with what it must be given, and nothing more."""
    schema = spec.function.parameters
    wanted = {name: schema.get("properties", {}).get(name, {}) for name in schema.get("required", ())}
    return Action.call(spec.function.name, {name: _value(kind) for name, kind in wanted.items()})


def _value(schema: Mapping[str, Any]) -> Any:
    """Something that the JSON schema `schema` may allow."""
    if "enum" in schema:
        return schema["enum"][0]
    number = schema.get("minimum", 1)
    return {"integer": number, "number": number, "boolean": True, "array": [], "object": {}}.get(
        str(schema.get("type")), "a"
    )


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
