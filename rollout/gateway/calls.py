"""One call: render, sample, read, record. What comes out is what the agent is given, and nothing else is recorded.

What always holds: the samples of a call are recorded together or not at all; a sample that nobody was given leaves no
trace, and its seed is free again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from quintain.failure import FailureError, FailureKind, Stage
from quintain.messages import ToolCall
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Completion, Engine, Sampling
from quintain.rollout.gateway.answers import Answer, Choice, TokenLogprob
from quintain.rollout.gateway.chat import ChatRequest, settle
from quintain.rollout.gateway.conversations import Prompt, RecordedTurn
from quintain.rollout.gateway.session import AgentSession
from quintain.trajectory import Finish

_Sample = tuple[Completion, float, float]
"""With when it began and ended, in seconds."""


class Calls:
    """Answers the calls of all sessions. `base` is the run's sampling, `max_length` in tokens, `clock` in seconds."""

    def __init__(self, engine: Engine, chat: Chat, base: Sampling, max_length: int, clock: Callable[[], float]) -> None:
        self._engine, self._chat, self._base = engine, chat, base
        self._max_length, self._clock = min(max_length, engine.max_length), clock

    async def answer(self, session: AgentSession, asked: ChatRequest) -> Answer:
        """The answer to `asked`, recorded in `session`. Raises FailureError, and then nothing is recorded."""
        settled = settle(asked.overrides, self._base, session.asked.overrides)
        prompt = session.conversations.prompt(asked.messages, asked.tools)
        sampling = replace(settled.sampling, max_tokens=self._most(session, asked, len(prompt.ids)))
        draws = [session.draw(prompt.ids, settled.seed) for _ in range(asked.choices)]
        samples = [
            asyncio.ensure_future(self._sample(session.id, prompt, replace(sampling, seed=seed), asked.stops))
            for seed, _ in draws
        ]
        try:
            sampled = await asyncio.gather(*samples)
        except BaseException:
            for sample in samples:
                sample.cancel()
            await asyncio.wait(samples)
            for _, number in draws:
                session.undraw(prompt.ids, number)
            raise
        session.ignored.update(settled.ignored)
        choices = tuple(self._record(session, asked, prompt, sample) for sample in sampled)
        return Answer(session.id, asked.model, choices, len(prompt.ids), settled.ignored)

    def _most(self, session: AgentSession, asked: ChatRequest, prompt_tokens: int) -> int:
        most = min(self._max_length, session.asked.max_length or self._max_length)
        if prompt_tokens >= most:
            message = f"the messages are {prompt_tokens} tokens long, and with the answer they may be {most}"
            raise FailureError.of(FailureKind.TOO_LONG, Stage.RENDER, message)
        limits = (self._base.max_tokens, session.asked.max_tokens, asked.max_tokens, most - prompt_tokens)
        return min(limit for limit in limits if limit is not None)

    async def _sample(self, session: str, prompt: Prompt, sampling: Sampling, stops: tuple[str, ...]) -> _Sample:
        began_s = self._clock()
        completion = await self._engine.generate(prompt.ids, self._chat.ends(sampling, stops), session=session)
        return completion, began_s, self._clock()

    def _record(self, session: AgentSession, asked: ChatRequest, prompt: Prompt, sample: _Sample) -> Choice:
        completion, began_s, ended_s = sample
        tools, ids = asked.tools if asked.may_call else (), completion.output_ids
        message = self._chat.read(ids, prompt_ids=prompt.ids, tools=tools, stop=asked.stops)
        message = replace(message, tool_calls=tuple(_numbered(session, call) for call in message.tool_calls))
        said = session.conversations.record(prompt, completion, message, began_s=began_s, ended_s=ended_s)
        session.output_tokens += len(ids)
        return Choice(said.number, message, _reason(said), self._logprobs(said, asked), said.turn.fork, len(ids))

    def _logprobs(self, said: RecordedTurn, asked: ChatRequest) -> tuple[TokenLogprob, ...] | None:
        if not asked.logprobs:
            return None
        ids, logprobs = said.turn.output_ids, said.turn.logprobs
        shown = len(ids) - int(len(ids) > 0 and int(ids[-1]) in self._chat.stop_ids)  # the end of a turn is no text
        return tuple(TokenLogprob(self._chat.token_bytes(int(ids[i])), float(logprobs[i])) for i in range(shown))


def _numbered(session: AgentSession, call: ToolCall) -> ToolCall:
    """`call` with an id of its own in the session: nine letters, since some templates insist."""
    session.made_calls += 1
    return replace(call, id=f"call{session.made_calls - 1:05d}")


def _reason(said: RecordedTurn) -> str:
    if said.turn.finish is not Finish.STOP:
        return "length"
    return "tool_calls" if said.turn.message.tool_calls else "stop"
