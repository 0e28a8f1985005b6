"""One episode with a model behind an OpenAI-compatible endpoint: chat messages out, chat messages in, no tokens.

For evaluation only: what comes out is a trajectory whose turns have messages, rewards and times but no token ids, since
the endpoint does not tell them. `info["usage"]` has the tokens as the endpoint counts them, where it does.

Invariants, as of `run_episode`:
- a trajectory always comes back: a failure is data (only cancellation passes through);
- a failed trajectory keeps the turns it had and has no reward;
- an endpoint that cannot be reached, refuses, or answers with what is no message is a failure, never a bad answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from quintain.calling.chat import ChatEndpoint, ChatReply
from quintain.codec import as_floats, as_ints, to_builtins
from quintain.envs.base import Action, Environment
from quintain.failure import Failure, FailureError, FailureKind, Stage, failure_from
from quintain.messages import FunctionCall, Message, ToolCall, ToolSpec
from quintain.rollout.episode import EpisodeSpec
from quintain.rollout.tasks import derive_seed
from quintain.trajectory import Ending, Finish, Trajectory, Turn

SEED_BITS: Final = 31
"""Endpoints take seeds that fit a signed 32-bit integer."""


async def run_chat_episode(
    spec: EpisodeSpec,
    *,
    make_env: Callable[[], Environment],
    endpoint: ChatEndpoint,
    send_seed: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Trajectory:
    """Run the episode, again while its failure is retryable and attempts are left.

    How to sample is the endpoint's request; of `spec.sampling` nothing is used. `send_seed` gives every turn a seed of
    its own that follows from the episode's.
    """
    for attempt in range(1, spec.attempts + 1):
        trajectory = await _ChatEpisode(spec, make_env(), endpoint, send_seed, clock, attempt).run()
        if trajectory.failure is None or not trajectory.failure.retryable:
            break
    return trajectory


class _ChatEpisode:
    """One attempt. Its state is the messages and turns so far and the stage it is in."""

    def __init__(
        self,
        spec: EpisodeSpec,
        env: Environment,
        endpoint: ChatEndpoint,
        send_seed: bool,
        clock: Callable[[], float],
        attempt: int,
    ) -> None:
        self.spec, self.env, self.endpoint, self.send_seed, self.clock = spec, env, endpoint, send_seed, clock
        self.attempt, self.stage, self.started = attempt, Stage.RESET, clock()
        self.turns: list[Turn] = []
        self.prompt: tuple[Message, ...] = ()
        self.rewards: dict[str, float] = {}
        self.usage: dict[str, int] = {}

    async def run(self) -> Trajectory:
        try:
            ending = await self._play()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the boundary: whatever broke in this episode is data of this episode
            return self._trajectory(Ending.FAILED, failure_from(error, self.stage))
        finally:
            with contextlib.suppress(FailureError):  # the environment's lease frees what a lost close leaves behind
                await self.env.close()
        return self._trajectory(ending, None)

    async def _play(self) -> Ending:
        observation = await self.env.reset(self.spec.task, seed=self.spec.seed)
        self.prompt = tuple(observation.messages)
        messages = list(observation.messages)
        while True:
            self.stage = Stage.GENERATE
            began = self.clock()
            reply = await self._ask(messages, observation.tools)
            said = message_of(reply)
            replied = self.clock()
            finish = Finish.LENGTH if reply.finish == "length" else Finish.STOP
            none, no_logprobs = as_ints([]), as_floats([])
            self.turns.append(Turn(none, none, no_logprobs, finish, (), said, generate_s=replied - began))
            self.stage = Stage.STEP  # where that fails, the turn is kept all the same
            step = await self.env.step(Action(said))
            new = tuple(step.observation.messages)
            self.turns[-1] = replace(self.turns[-1], observation=new, reward=step.reward, env_s=self.clock() - replied)
            for name, value in dict(step.info.get("rewards", {})).items():
                self.rewards[name] = self.rewards.get(name, 0.0) + float(value)
            if step.terminated:
                return Ending.TERMINATED
            if step.truncated or len(self.turns) >= self.spec.max_turns:
                return Ending.TRUNCATED
            messages += [said, *new]

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> ChatReply:
        more: dict[str, Any] = {"tools": [to_builtins(tool) for tool in tools]} if tools else {}
        if self.send_seed:
            more["seed"] = derive_seed(self.spec.seed, "turn", len(self.turns)) % 2**SEED_BITS
        reply = await self.endpoint.complete([message.to_openai() for message in messages], **more)
        for name, count in (("prompt_tokens", reply.prompt_tokens), ("output_tokens", reply.output_tokens)):
            if count is not None:
                self.usage[name] = self.usage.get(name, 0) + count
        return reply

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
            None if failure else math.fsum(turn.reward for turn in self.turns),
            failure,
            {} if failure else self.rewards,
            self.prompt,
            {"usage": dict(self.usage)} if self.usage else {},
            self.attempt,
            self.clock() - self.started,
        )


def message_of(reply: ChatReply) -> Message:
    """The assistant message that a reply says. Raises FailureError (invalid) where it says none.

    No text at all is the empty answer; thinking that the endpoint tells apart (`reasoning_content`) is not the answer.
    """
    content, calls = reply.message.get("content"), reply.message.get("tool_calls") or ()
    if content is not None and not isinstance(content, str):
        raise _no_message(reply, "its content is no text")
    try:
        called = tuple(_call(call) for call in calls)
    except (KeyError, TypeError, AttributeError):
        raise _no_message(reply, "its tool calls are malformed") from None
    return Message("assistant", content if content is not None or called else "", called)


def _call(call: Mapping[str, Any]) -> ToolCall:
    name, arguments = call["function"]["name"], call["function"].get("arguments", "")
    if not isinstance(arguments, str):  # some servers send the object itself
        arguments = json.dumps(arguments)
    return ToolCall(str(call.get("id") or ""), FunctionCall(str(name), arguments))


def _no_message(reply: ChatReply, what: str) -> FailureError:
    message = f"the endpoint's reply is no assistant message, {what}: {json.dumps(reply.message)[:200]}"
    return FailureError(Failure.of(FailureKind.INVALID, Stage.GENERATE, message))
