"""One call: render, sample, read, record. What comes out is what the agent is given, and nothing else is recorded.

What always holds: the samples of a call are recorded together or not at all; a sample that nobody was given leaves no
trace, and its seed is free again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from quintain.codec import Ints
from quintain.messages import ToolCall
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Completion, Engine, Sampling
from quintain.rollout.gateway.answers import Answer, Choice, TokenLogprob
from quintain.rollout.gateway.chat import ChatRequest, settle
from quintain.rollout.gateway.conversations import Prompt, RecordedTurn
from quintain.rollout.gateway.errors import too_long
from quintain.rollout.gateway.session import AgentSession
from quintain.trajectory import Finish, VersionSpan


class Counted(Protocol):
    """The counters that calls add to."""

    turns: int
    output_tokens: int
    wasted_tokens: int
    ignored: Counter[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    completion: Completion
    text: str
    wasted: int
    stopped: bool
    began_s: float
    ended_s: float


class Calls:
    """Answers the calls of all sessions. `base` is the run's sampling, `max_length` in tokens, `clock` in seconds."""

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        base: Sampling,
        max_length: int,
        counters: Counted,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._chat, self._base = engine, chat, base
        self._max_length, self._counters, self._clock = min(max_length, engine.max_length), counters, clock

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
        self._counters.ignored.update(settled.ignored)
        choices = tuple(self._record(session, asked, prompt, sample) for sample in sampled)
        return Answer(session.id, asked.model, choices, len(prompt.ids), settled.ignored)

    def _most(self, session: AgentSession, asked: ChatRequest, prompt_tokens: int) -> int:
        most = min(self._max_length, session.asked.max_length or self._max_length)
        if prompt_tokens >= most:
            raise too_long(f"the messages are {prompt_tokens} tokens long, and with the answer they may be {most}")
        limits = (self._base.max_tokens, session.asked.max_tokens, asked.max_tokens, most - prompt_tokens)
        return min(limit for limit in limits if limit is not None)

    async def _sample(self, session: str, prompt: Prompt, sampling: Sampling, stops: tuple[str, ...]) -> _Sample:
        began_s = self._clock()
        whole = await self._engine.generate(
            prompt.ids, replace(sampling, stop_ids=self._chat.stop_ids), session=session
        )
        ended_s = self._clock()
        found = first_stop(whole.output_ids, self._chat.text, stops)
        if found is None:
            return _Sample(whole, self._chat.text(whole.output_ids), 0, False, began_s, ended_s)
        wasted = len(whole.output_ids) - found.tokens
        return _Sample(cut(whole, found.tokens), found.text, wasted, True, began_s, ended_s)

    def _record(self, session: AgentSession, asked: ChatRequest, prompt: Prompt, sample: _Sample) -> Choice:
        tools, text = asked.tools if asked.may_call else (), sample.text if sample.stopped else None
        message = self._chat.read(sample.completion.output_ids, prompt_ids=prompt.ids, tools=tools, text=text)
        message = replace(message, tool_calls=tuple(_numbered(session, call) for call in message.tool_calls))
        said = session.conversations.record(
            prompt, sample.completion, message, began_s=sample.began_s, ended_s=sample.ended_s
        )
        session.output_tokens += len(sample.completion.output_ids)
        session.wasted_tokens += sample.wasted
        self._counters.turns += 1
        self._counters.output_tokens += len(sample.completion.output_ids)
        self._counters.wasted_tokens += sample.wasted
        reason, sampled = _reason(said, sample.stopped), len(sample.completion.output_ids)
        return Choice(said.number, message, reason, self._logprobs(said, asked), said.turn.fork, sampled)

    def _logprobs(self, said: RecordedTurn, asked: ChatRequest) -> tuple[TokenLogprob, ...] | None:
        if not asked.logprobs:
            return None
        ids, logprobs = said.turn.output_ids, said.turn.logprobs
        shown = len(ids) - int(said.turn.finish is Finish.STOP)  # the end of a turn is no text
        return tuple(TokenLogprob(self._chat.text(ids[i : i + 1]), float(logprobs[i])) for i in range(shown))


def _numbered(session: AgentSession, call: ToolCall) -> ToolCall:
    """`call` with an id of its own in the session: nine letters, since some templates insist."""
    session.made_calls += 1
    return replace(call, id=f"call{session.made_calls - 1:05d}")


def _reason(said: RecordedTurn, stopped: bool) -> str:
    finish = said.turn.finish
    if finish is not Finish.STOP and not stopped:
        return "length"
    return "tool_calls" if said.turn.message.tool_calls else "stop"


@dataclass(frozen=True, slots=True)
class Cut:
    """The first `tokens` of a sample complete a stop string; `text` is what they say before it.

    Cutting there gives exactly what an engine would have sampled that watches for the string, because whether to stop
    depends on nothing that comes later.
    """

    tokens: int
    text: str


def first_stop(ids: Ints, decode: Callable[[Ints], str], stops: Sequence[str]) -> Cut | None:
    """Where the first of `stops` is complete, by bisection over the tokens. None where none of them is said."""

    def place(tokens: int) -> int:
        said = decode(ids[:tokens])
        return min((at for stop in stops if (at := said.find(stop)) >= 0), default=-1)

    if not stops or place(len(ids)) < 0:
        return None
    without, having = 0, len(ids)
    while having - without > 1:
        middle = (without + having) // 2
        without, having = (without, middle) if place(middle) >= 0 else (middle, having)
    return Cut(having, decode(ids[:having])[: place(having)])


def cut(completion: Completion, tokens: int) -> Completion:
    """The first `tokens` of `completion`, as told to stop there. Nothing where that is all of it."""
    spans = tuple(
        VersionSpan(span.version, span.start, min(span.end, tokens))
        for span in completion.versions
        if span.start < tokens
    )
    return Completion(completion.output_ids[:tokens], completion.logprobs[:tokens], Finish.ABORT, spans)
