"""One episode: reset, then sample and step until it ends; what comes out is a trajectory of exact tokens.

Invariants:
- `run_episode` always returns a trajectory: a failure is data, it never raises (only cancellation passes through);
- a failed trajectory keeps the turns it had and has no reward;
- the tokens of a turn's prompt are those of the turn before and the new messages, unless the turn says why not;
- the same spec gives the same seeds at every attempt, so trying again does not change what is sampled;
- a `Cutoff` ends an episode at whatever it waits for, as a failure that is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quintain.codec import Ints
from quintain.envs.base import Action, Environment
from quintain.failure import Failure, FailureError, FailureKind, Stage, failure_from
from quintain.messages import Message
from quintain.rollout.engines.base import Completion, Engine, Sampling
from quintain.rollout.renderer import Renderer
from quintain.rollout.tasks import derive_seed
from quintain.task import Task
from quintain.trajectory import Ending, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """What to run: a task, its place in the run, how to sample, and the limits. Lengths are in tokens."""

    id: str
    group: str
    task: Task
    index: int
    member: int
    seed: int
    sampling: Sampling
    max_turns: int
    max_length: int
    attempts: int = 1
    sample_timeout_s: float | None = None  # of one turn's sampling


class Cutoff:
    """Lets somebody else end an episode early, with `end(reason)`."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._scope: asyncio.Timeout | None = None

    def end(self, reason: str) -> None:
        """End the episode now, or as soon as it runs. The first reason stands."""
        if self.reason is None:
            self.reason = reason
            if self._scope is not None:
                self._scope.reschedule(asyncio.get_running_loop().time())

    async def bound(self, play: Coroutine[Any, Any, Ending]) -> Ending:
        """What `play` returns. Raises TimeoutError where `end` was said meanwhile."""
        try:
            async with asyncio.timeout(None if self.reason is None else 0) as scope:
                self._scope = scope
                return await play
        finally:
            self._scope = None


async def run_episode(
    spec: EpisodeSpec,
    *,
    make_env: Callable[[], Environment],
    engine: Engine,
    renderer: Renderer,
    clock: Callable[[], float] = time.monotonic,
    cutoff: Cutoff | None = None,
) -> Trajectory:
    """Run the episode, again while its failure is retryable and attempts are left."""
    cutoff = cutoff or Cutoff()
    for attempt in range(1, spec.attempts + 1):
        trajectory = await _Episode(spec, make_env(), engine, renderer, clock, attempt, cutoff).run()
        if trajectory.failure is None or not trajectory.failure.retryable:
            break
    return trajectory


class _Episode:
    """One attempt. Its state is the messages and turns so far and the stage it is in."""

    def __init__(
        self,
        spec: EpisodeSpec,
        env: Environment,
        engine: Engine,
        renderer: Renderer,
        clock: Callable[[], float],
        attempt: int,
        cutoff: Cutoff,
    ) -> None:
        self.spec, self.env, self.engine, self.renderer, self.clock = spec, env, engine, renderer, clock
        self.attempt, self.cutoff = attempt, cutoff
        self.stage = Stage.RESET
        self.started = clock()
        self.turns: list[Turn] = []
        self.prompt: tuple[Message, ...] = ()
        self.rewards: dict[str, float] = {}
        self.task_id = spec.task.id

    async def run(self) -> Trajectory:
        try:
            ending = await self.cutoff.bound(self._play())
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the boundary: whatever broke in this episode is data of this episode
            return self._trajectory(Ending.FAILED, self._failure(error))
        finally:
            await self._close()
        return self._trajectory(ending, None)

    async def _play(self) -> Ending:
        observation = await self.env.reset(self.spec.task, seed=self.spec.seed)
        self.prompt = tuple(observation.messages)
        messages = list(observation.messages)
        tools = observation.tools
        self.stage = Stage.RENDER
        ids, fork = self.renderer.first(messages, tools), None
        while True:
            room = self.spec.max_length - len(ids)
            if room <= 0:
                if self.turns:
                    return Ending.TRUNCATED
                message = f"the prompt has {len(ids)} tokens and an episode at most {self.spec.max_length}"
                raise FailureError(Failure.of(FailureKind.TOO_LONG, Stage.RENDER, message))
            self.stage = Stage.GENERATE
            began = self.clock()
            completion = await self._sample(ids, room)
            sampled = self.clock()
            self.stage = Stage.RENDER
            message_out = self.renderer.parse(completion.output_ids)
            self.turns.append(
                Turn(
                    ids,
                    completion.output_ids,
                    completion.logprobs,
                    completion.finish,
                    completion.versions,
                    message_out,
                    fork=fork,
                    generate_s=sampled - began,
                )
            )
            self.stage = Stage.STEP  # where that fails, the turn is kept all the same
            step = await self.env.step(Action(message_out))
            new = tuple(step.observation.messages)
            self.turns[-1] = replace(self.turns[-1], observation=new, reward=step.reward, env_s=self.clock() - sampled)
            for name, value in dict(step.info.get("rewards", {})).items():
                self.rewards[name] = self.rewards.get(name, 0.0) + float(value)
            if step.terminated:
                return Ending.TERMINATED
            if step.truncated or len(self.turns) >= self.spec.max_turns:
                return Ending.TRUNCATED
            self.stage = Stage.RENDER
            messages.append(message_out)
            rendered = self.renderer.extend(self.turns[-1].ids, messages, new, tools)
            messages += new
            ids, fork = rendered.ids, rendered.fork

    def _failure(self, error: Exception) -> Failure:
        if self.cutoff.reason is not None:
            return Failure.of(FailureKind.TIMEOUT, self.stage, self.cutoff.reason, retryable=False)
        return failure_from(error, self.stage)

    async def _sample(self, ids: Ints, room: int) -> Completion:
        limit = self.spec.sample_timeout_s
        try:
            async with asyncio.timeout(limit) as scope:
                return await self.engine.generate(ids, self._sampling(room), session=self.spec.id)
        except TimeoutError:
            if not scope.expired():
                raise
            message = f"the engine did not finish a turn within {limit:g} s (rollout.sample_timeout_s)"
            raise FailureError(Failure.of(FailureKind.TIMEOUT, Stage.GENERATE, message)) from None

    def _sampling(self, room: int) -> Sampling:
        base = self.spec.sampling
        seed = derive_seed(self.spec.seed, "turn", len(self.turns))
        return replace(base, max_tokens=min(base.max_tokens, room), seed=seed, stop_ids=self.renderer.stop_ids)

    def _trajectory(self, ending: Ending, failure: Failure | None) -> Trajectory:
        spec = self.spec
        reward = None if failure else float(np.sum([turn.reward for turn in self.turns]))
        return Trajectory(
            spec.id,
            spec.group,
            self.task_id,
            spec.index,
            spec.member,
            spec.seed,
            tuple(self.turns),
            ending,
            reward,
            failure,
            {} if failure else self.rewards,
            self.prompt,
            attempts=self.attempt,
            elapsed_s=self.clock() - self.started,
        )

    async def _close(self) -> None:
        with contextlib.suppress(FailureError):  # the environment's lease frees what a lost close leaves behind
            await self.env.close()
