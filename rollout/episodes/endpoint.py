"""One episode with a model behind an OpenAI-compatible endpoint: chat messages out, chat messages in, no tokens.

For evaluation only: what comes out is a trajectory whose turns have messages, rewards and times but no token ids, since
the endpoint does not tell them. `info["usage"]` has the tokens as the endpoint counts them, where it does.

Invariants, as of `run_episode`:
- a trajectory always comes back: a failure is data (only cancellation passes through);
- a failed trajectory keeps the turns it had and has no reward;
- an endpoint that cannot be reached, refuses, or answers with what is no message is a failure, never a bad answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from quintain.arrays import as_floats, as_ints
from quintain.calling.chat import ChatEndpoint, ChatReply
from quintain.codec import to_builtins
from quintain.envs.base import Environment, Observation
from quintain.failure import FailureError, FailureKind, Stage
from quintain.messages import REASONING, FunctionCall, Message, ToolCall, ToolSpec
from quintain.rollout.episodes.episode import Attempt, EpisodeSpec, attempted
from quintain.rollout.rules.order import derive_seed
from quintain.task import POLICY
from quintain.trajectory import Finish, Trajectory, Turn

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
    return await attempted(
        spec, lambda number: _Asked(spec, make_env(), number, clock, endpoint=endpoint, send_seed=send_seed)
    )


class _Asked(Attempt):
    """The policy answers requests, message by message."""

    def __init__(self, *episode: Any, endpoint: ChatEndpoint, send_seed: bool) -> None:
        super().__init__(*episode)
        self._endpoint, self._send_seed = endpoint, send_seed
        self._heard: dict[str, tuple[list[Message], Sequence[ToolSpec]]] = {}
        self._agent = POLICY
        self._usage: dict[str, int] = {}

    def hear(self, observation: Observation) -> None:
        self._agent = observation.agent
        messages, _ = self._heard.setdefault(self._agent, ([], observation.tools))
        last = self.last_turn(self._agent)
        messages += [*([] if last is None else [last.message]), *observation.messages]

    async def act(self) -> Turn | None:
        self.stage = Stage.GENERATE
        began = self.clock()
        reply = await self._ask()
        said = message_of(reply)
        finish = Finish.LENGTH if reply.finish == "length" else Finish.STOP
        none, no_logprobs = as_ints([]), as_floats([])
        took = self.clock() - began
        return Turn(none, none, no_logprobs, finish, (), said, generate_s=took, agent=self._agent)

    async def _ask(self) -> ChatReply:
        messages, tools = self._heard[self._agent]
        more: dict[str, Any] = {"tools": [to_builtins(tool) for tool in tools]} if tools else {}
        if self._send_seed:
            more["seed"] = derive_seed(self.spec.seed, "turn", len(self.turns)) % 2**SEED_BITS
        told = [replace(message, reasoning=None).to_openai() for message in messages]  # endpoints refuse it
        reply = await self._endpoint.complete(told, **more)
        for name, count in (("prompt_tokens", reply.prompt_tokens), ("output_tokens", reply.output_tokens)):
            if count is not None:
                self._usage[name] = self._usage.get(name, 0) + count
                self.info["usage"] = dict(self._usage)
        return reply


def message_of(reply: ChatReply) -> Message:
    """The assistant message that a reply says. Raises FailureError (invalid) where it says none.

    No text at all is the empty answer; what the endpoint says that the model thought is the message's reasoning.
    """
    content, calls = reply.message.get("content"), reply.message.get("tool_calls") or ()
    if content is not None and not isinstance(content, str):
        raise _no_message(reply, "its content is no text")
    try:
        called = tuple(_call(call) for call in calls)
    except (KeyError, TypeError, AttributeError):
        raise _no_message(reply, "its tool calls are malformed") from None
    thought = reply.message.get(REASONING) or reply.message.get("reasoning")
    said = content if content is not None or called else ""
    return Message("assistant", said, called, reasoning=thought if isinstance(thought, str) else None)


def _call(call: Mapping[str, Any]) -> ToolCall:
    name, arguments = call["function"]["name"], call["function"].get("arguments", "")
    if not isinstance(arguments, str):  # some servers send the object itself
        arguments = json.dumps(arguments)
    return ToolCall(str(call.get("id") or ""), FunctionCall(str(name), arguments))


def _no_message(reply: ChatReply, what: str) -> FailureError:
    message = f"the endpoint's reply is no assistant message, {what}: {json.dumps(reply.message)[:200]}"
    return FailureError.of(FailureKind.INVALID, Stage.GENERATE, message)
