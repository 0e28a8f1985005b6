"""One episode: reset, then sample and step until it ends; what comes out is a trajectory of exact tokens.

Invariants:
- `run_episode` always returns a trajectory: a failure is data, it never raises (only cancellation passes through);
- a failed trajectory keeps the turns it had and has no reward;
- the tokens of a turn's prompt are those of the turn before and the new messages, unless the turn says why not;
- the same spec gives the same seeds at every attempt, so trying again does not change what is sampled;
- an episode that is played is not left alone, however long a turn is sampled: the environment's lease is renewed;
- a `Cutoff` ends an episode at whatever it waits for, as a failure that is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from quintain.arrays import Ints, as_ints
from quintain.envs.base import Action, Environment, Observation, Step
from quintain.envs.client import RemoteEnv
from quintain.envs.harness import PROGRAM
from quintain.failure import Failure, FailureError, FailureKind, Stage, failure_from
from quintain.messages import Message, ToolSpec
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Engine, Sampling
from quintain.rollout.episodes.agent_calls import AgentCalls
from quintain.rollout.rules.order import derive_seed
from quintain.task import POLICY, Task
from quintain.trajectory import Ending, Trajectory, Turn

T = TypeVar("T")


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
    environment: str = ""
    reward_weights: Mapping[str, float] | None = None  # the reward is the sum of these named ones; None: as it is


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
    chat: Chat,
    clock: Callable[[], float] = time.monotonic,
    cutoff: Cutoff | None = None,
) -> Trajectory:
    """Run the episode with `engine`, again while its failure is retryable and attempts are left."""
    cutoff = cutoff or Cutoff()
    return await attempted(
        spec, lambda number: _Sampled(spec, make_env(), number, clock, cutoff, engine=engine, chat=chat)
    )


async def attempted(spec: EpisodeSpec, make: Callable[[int], Attempt]) -> Trajectory:
    """What the first attempt gives that does not fail, or the last of `spec.attempts`; `make` is told its number."""
    for number in range(1, spec.attempts + 1):
        trajectory = await make(number).run()
        if trajectory.failure is None or not trajectory.failure.retryable:
            break
    return trajectory


class Attempt(ABC):
    """One attempt at an episode: its state is the turns so far and the stage it is in. Who plays is a subclass."""

    def __init__(
        self, spec: EpisodeSpec, env: Environment, number: int, clock: Callable[[], float], cutoff: Cutoff | None = None
    ) -> None:
        self.spec, self.env, self.number, self.clock = spec, env, number, clock
        self.cutoff = cutoff or Cutoff()
        self.stage = Stage.RESET
        self.started = clock()
        self.turns: list[Turn] = []
        self.prompt: tuple[Message, ...] = ()
        self.rewards: dict[str, float] = {}
        self.info: dict[str, Any] = {}

    @abstractmethod
    def hear(self, observation: Observation) -> None:
        """It is the turn of a seat, and this is what is new to it."""

    @abstractmethod
    async def act(self) -> Turn | None:
        """That seat's turn, without what the environment will answer; None where there is no room for one."""

    def last_turn(self, agent: str) -> Turn | None:
        """The last turn of a seat, None where it has had none."""
        return next((turn for turn in reversed(self.turns) if turn.agent == agent), None)

    async def run(self) -> Trajectory:
        try:
            ending = await self.cutoff.bound(self._play())
            self._check_rewards()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the boundary: whatever broke in this episode is data of this episode
            return self._trajectory(Ending.FAILED, self._failure(error))
        finally:
            with contextlib.suppress(FailureError):  # the environment's lease frees what a lost close leaves behind
                await self.env.close()
        return self._trajectory(ending, None)

    async def _play(self) -> Ending:
        observation = await self.env.reset(self.spec.task, seed=self.spec.seed)
        self.prompt = tuple(observation.messages)
        async with _lease_kept(self.env):
            return await self.take_turns(observation)

    async def take_turns(self, observation: Observation) -> Ending:
        """Play from the first observation to the end."""
        if observation.tools:
            self.info["tools"] = [tool.function.name for tool in observation.tools]
        self.hear(observation)
        while (turn := await self.act()) is not None:
            self.turns.append(turn)  # it is kept where the step fails
            self.stage = Stage.STEP
            began = self.clock()
            step = await self.env.step(Action(turn.message))
            new = tuple(step.observation.messages)
            turn = replace(turn, observation=new, reward=step.reward, env_s=self.clock() - began)
            self.turns[-1] = turn
            self._pay(step.others)
            self.heed(step)
            if step.terminated:
                return Ending.TERMINATED
            if step.truncated or len(self.turns) >= self.spec.max_turns:
                return Ending.TRUNCATED
            self.hear(step.observation)
        return Ending.TRUNCATED

    def heed(self, step: Step) -> None:
        """Keep what a step says of its rewards."""
        for name, value in dict(step.info.get("rewards", {})).items():
            self.rewards[name] = self.rewards.get(name, 0.0) + float(value)
        if "outcome" in step.info:  # the last verdict's
            self.info["outcome"] = step.info["outcome"]

    def _pay(self, others: Mapping[str, float]) -> None:
        """Each of `others` for its last turn; who had none has nothing that could be credited."""
        for agent, reward in others.items():
            at = next((at for at in reversed(range(len(self.turns))) if self.turns[at].agent == agent), None)
            if at is not None:
                self.turns[at] = replace(self.turns[at], reward=self.turns[at].reward + reward)

    def _of_seats(self) -> dict[str, float]:
        """What each seat was paid, where there are several."""
        paid: dict[str, float] = {}
        for turn in self.turns:
            paid[turn.agent] = paid.get(turn.agent, 0.0) + turn.reward
        return paid if len(paid) > 1 else {}

    def _failure(self, error: Exception) -> Failure:
        if self.cutoff.reason is not None:
            return Failure.of(FailureKind.TIMEOUT, self.stage, self.cutoff.reason, retryable=False)
        return failure_from(error, self.stage)

    def _reward(self) -> float:
        weights = self.spec.reward_weights
        if weights is None:
            return math.fsum(turn.reward for turn in self.turns)
        return math.fsum(weight * self.rewards[name] for name, weight in weights.items())

    def _check_rewards(self) -> None:
        missing = next((name for name in self.spec.reward_weights or () if name not in self.rewards), None)
        if missing is not None:
            known = ", ".join(self.rewards) or "none at all"
            message = f"environment.reward_weights: the environment gives no reward {missing!r} (it gives {known})"
            raise FailureError.of(FailureKind.INVALID, Stage.STEP, message, retryable=False)
        if self.spec.reward_weights and self._of_seats():
            message = "environment.reward_weights are for episodes of one seat, and this one has several: drop them"
            raise FailureError.of(FailureKind.INVALID, Stage.STEP, message, retryable=False)

    def _trajectory(self, ending: Ending, failure: Failure | None) -> Trajectory:
        spec = self.spec
        return Trajectory(
            spec.id,
            spec.group,
            spec.task.id,
            spec.index,
            spec.member,
            spec.seed,
            tuple(self.turns),
            ending,
            None if failure else self._reward(),
            failure,
            {} if failure else {**self.rewards, **self._of_seats()},
            self.prompt,
            self.info,
            self.number,
            self.clock() - self.started,
            spec.environment,
            self.env.task_id or (None if spec.task.origin else spec.task.id),
        )


@contextlib.asynccontextmanager
async def _lease_kept(env: Environment) -> AsyncIterator[None]:
    """Keeps the lease of an environment that has one."""
    if not isinstance(env, RemoteEnv):
        yield
        return
    keeping = asyncio.create_task(env.keep_lease())
    try:
        yield
    finally:
        keeping.cancel()


@dataclass(slots=True)
class _Seat:
    """What one seat has heard and said, as messages and as tokens; its next prompt is `ids`, which extend `before`."""

    messages: list[Message]
    tools: Sequence[ToolSpec]
    ids: Ints
    before: Turn | None = None
    fork: str | None = None


class _Sampled(Attempt):
    """The policy is an engine's, token by token."""

    def __init__(self, *episode: Any, engine: Engine, chat: Chat) -> None:
        super().__init__(*episode)
        self._engine, self._chat = engine, chat
        self._seats: dict[str, _Seat] = {}
        self._agent = POLICY

    async def take_turns(self, observation: Observation) -> Ending:
        if observation.agent != PROGRAM:
            return await super().take_turns(observation)
        calls = AgentCalls(self.spec, self._engine, self._chat, self.clock)
        reward = 0.0
        try:
            while True:
                self.stage = Stage.GENERATE
                answer = await self._in_time(calls.answer(observation))
                if answer is None:
                    return Ending.TRUNCATED
                self.stage = Stage.STEP
                step = await self.env.step(answer)
                self.heed(step)
                if step.ended:
                    reward = step.reward
                    calls.check_asked()
                    return Ending.TERMINATED if step.terminated else Ending.TRUNCATED
                observation = step.observation
        finally:
            self.turns, self.prompt = calls.turns(reward), calls.prompt
            self.info["gateway"] = calls.info()

    def hear(self, observation: Observation) -> None:
        self.stage, self._agent = Stage.RENDER, observation.agent
        last, new = self.last_turn(self._agent), observation.messages
        if last is None:
            ids = self._chat.first(new, observation.tools)
            self._seats[self._agent] = _Seat(list(new), observation.tools, ids)
            return
        seat = self._seats[self._agent]
        seat.messages.append(last.message)
        rendered = self._chat.extend(seat.ids, last.output_ids, seat.messages, new, seat.tools)
        seat.messages += new
        seat.ids, seat.fork = rendered.ids, rendered.fork
        seat.before = last if rendered.fork is None else None

    async def act(self) -> Turn | None:
        seat = self._seats[self._agent]
        room = self.spec.max_length - len(seat.ids)
        if room <= 0:
            if self.turns:
                return None
            message = f"the prompt has {len(seat.ids)} tokens and an episode at most {self.spec.max_length}"
            raise FailureError.of(FailureKind.TOO_LONG, Stage.RENDER, message)
        self.stage = Stage.GENERATE
        began = self.clock()
        completion = await self._in_time(self._engine.generate(seat.ids, self._sampling(room), session=self.spec.id))
        sampled = self.clock()
        self.stage = Stage.RENDER
        known = 0 if seat.before is None else len(seat.before.ids)
        return Turn(
            as_ints(seat.ids[known:].copy()),  # a view would keep all the tokens before it
            completion.output_ids,
            completion.logprobs,
            completion.finish,
            completion.versions,
            self._chat.read(completion.output_ids, prompt_ids=seat.ids, tools=seat.tools),
            fork=seat.fork,
            generate_s=sampled - began,
            agent=self._agent,
            before=seat.before,
        )

    async def _in_time(self, sampling: Awaitable[T]) -> T:
        limit = self.spec.sample_timeout_s
        try:
            async with asyncio.timeout(limit) as scope:
                return await sampling
        except TimeoutError:
            if not scope.expired():
                raise
            message = f"the engine did not finish a turn within {limit:g} s (rollout.sample_timeout_s)"
            raise FailureError.of(FailureKind.TIMEOUT, Stage.GENERATE, message) from None

    def _sampling(self, room: int) -> Sampling:
        base = self.spec.sampling
        seed = derive_seed(self.spec.seed, "turn", len(self.turns))
        return self._chat.ends(replace(base, max_tokens=min(base.max_tokens, room), seed=seed))
