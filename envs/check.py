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
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from quintain.envs.base import Action, Environment
from quintain.envs.check_episodes import Client, EpisodeChecks, Found, Play
from quintain.envs.local import LocalClient
from quintain.envs.options import bind
from quintain.envs.serving.limits import EnvironmentLimits

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
        "fork": "its own fork goes on as it does, and neither changes the other",
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
    play = Play(tasks, said, max_turns, limits.reset_s, limits.close_s)
    if isinstance(env, str) and "://" in env:
        from quintain.envs.client import EnvClient

        async with EnvClient(env, token) as client:
            served = tuple((await client.metadata()).splits)
            return _told(await EpisodeChecks(play, client).made(splits or served))
    if not isinstance(env, (str, type)):
        return _told(await EpisodeChecks(play, env).made(splits or ("train",)))
    return await _of_class(env, options, limits, play, splits)


async def _of_class(
    env: str | type[Environment],
    options: Mapping[str, Any] | None,
    limits: EnvironmentLimits,
    play: Play,
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
        return _told(await EpisodeChecks(play, first, other, bound, sessions).made(splits or cls.splits))


def _told(found: Found) -> tuple[EnvironmentCheck, ...]:
    problems, skipped = found
    return tuple(
        EnvironmentCheck(name, tuple(dict.fromkeys(problems[name])), "" if problems[name] else skipped.get(name, ""))
        for name in CHECKS
    )


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
