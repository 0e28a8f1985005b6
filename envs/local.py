"""Environments in this process, held to the same rules as behind a server.

    client = LocalClient(MathEnv)                    # used like EnvClient
    env = client.episode()

What always holds: a turn after the end or on a closed episode is refused; whatever the environment raises, or
breaks of its contract, is a `FailureError`; a deadline cancels code that awaits. (Code that blocks blocks the
caller: a server's workers can be killed, this process cannot.)
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any, Self

from quintain.envs.base import Action, Environment, Observation, Step, out_of_turn
from quintain.envs.options import bind
from quintain.envs.serving.episode import Episode, PlayTurn
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.workers.host import Host
from quintain.failure import FailureError, FailureKind, Stage
from quintain.task import Task, TaskSource

log = logging.getLogger(__name__)


class LocalClient:
    """Makes episodes of `cls` with `options`.

    Calling it makes an episode. Raises QuintainError for wrong options.
    """

    def __init__(
        self,
        cls: type[Environment],
        options: Mapping[str, Any] | None = None,
        *,
        limits: EnvironmentLimits | None = None,
    ) -> None:
        self._bound = bind(cls, options)
        self.host = Host(self._bound)
        self._limits = limits or EnvironmentLimits()

    def episode(self) -> LocalEnv:
        """An environment in this process."""
        return LocalEnv(self.host, self._limits, self._bound.tasks)

    __call__ = episode

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`, references included."""
        return self._bound.tasks(split)

    async def aclose(self) -> None:
        """Close every episode and the verifiers they share."""
        await self.host.close_all(time.monotonic() + self._limits.close_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class LocalEnv(Environment):
    """One episode at a time of a class in this process; made by `LocalClient`."""

    def __init__(self, host: Host, limits: EnvironmentLimits, tasks: Any) -> None:
        self._host, self._limits, self._tasks = host, limits, tasks
        self._id = ""
        self._episode: Episode[None] | None = None

    def tasks(self, split: str) -> TaskSource:  # type: ignore[override]  # its options are an instance's
        """The tasks of `split`."""
        source: TaskSource = self._tasks(split)
        return source

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin an episode. Raises FailureError."""
        await self.close()
        self._id, self._episode = uuid.uuid4().hex, Episode()
        try:
            observation, self.task_id = await self._host.open(
                self._id, task, seed, time.monotonic() + self._limits.reset_s
            )
        except FailureError as error:
            self._episode.failed(error.failure)
            raise
        self._episode.opened()
        return observation

    async def step(self, action: Action) -> Step:
        """Play a turn. Raises FailureError."""
        if self._episode is None:
            raise out_of_turn(begun=False)
        decision = self._episode.ask(self._episode.turn + self._episode.busy, action)
        if not isinstance(decision, PlayTurn):
            reason = getattr(decision, "reason", "a turn is being played")
            raise FailureError.of(FailureKind.REJECTED, Stage.STEP, reason)
        try:
            step = await self._host.step(self._id, action, time.monotonic() + self._limits.step_s)
        except FailureError as error:
            if self._episode.live:
                self._episode.failed(error.failure)
            raise
        self._episode.answered(None, ended=step.ended)
        return step

    async def close(self) -> None:
        """Close the episode; an environment that cannot is logged. Allowed at any time and twice."""
        if self._episode is not None:
            self._episode.close()
            try:
                await self._host.close(self._id, time.monotonic() + self._limits.close_s)
            except FailureError as error:  # as a server does: the episode's result stands
                log.warning("an environment was not closed: %s", error, exc_info=error.__cause__)
