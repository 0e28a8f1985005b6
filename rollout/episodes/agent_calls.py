"""The calls of an agent program that plays an episode: each is sampled and recorded as the gateway does it.

What always holds: the turns are those that the program was given, token by token, in chains as of `Conversations`;
what the engine cannot do ends the episode as a failure, and what the program does wrong it is told, in its own API;
sampling is the run's: what a call asks for beside that is ignored, and named in `info`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quintain.codec import from_json, to_json
from quintain.envs.base import Action, Observation
from quintain.envs.harness import ProgramAnswer, ProgramCall
from quintain.failure import FailureError, FailureKind, Stage
from quintain.messages import Message
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Engine
from quintain.rollout.gateway.calls import Calls
from quintain.rollout.gateway.conversations import Conversations
from quintain.rollout.gateway.dialects import CHAT, COUNTS, DIALECTS, no_such_page
from quintain.rollout.gateway.errors import ApiError, as_api_error
from quintain.rollout.gateway.session import AgentSession
from quintain.rollout.gateway.wire import OpenSession, Overrides
from quintain.trajectory import Turn

if TYPE_CHECKING:
    from quintain.rollout.episodes.episode import EpisodeSpec


class AgentCalls:
    """Those of one episode."""

    def __init__(self, spec: EpisodeSpec, engine: Engine, chat: Chat, clock: Callable[[], float]) -> None:
        now_s, asked = clock(), OpenSession(overrides=Overrides.IGNORE)
        self._session = AgentSession(spec.id, asked, spec.seed, Conversations(chat), now_s, now_s)
        self._calls = Calls(engine, chat, spec.sampling, spec.max_length, clock)
        self._most = spec.max_turns
        self._refused = ""

    async def answer(self, observation: Observation) -> Action | None:
        """The answer to the call, None where there is no room for one. Raises FailureError for the engine's trouble."""
        call = from_json(observation.messages[0].text, ProgramCall)
        page = call.path.partition("?")[0].removeprefix("/v1/")
        dialect = COUNTS[page].dialect if page in COUNTS else DIALECTS.get(page, CHAT)
        try:
            if (count := COUNTS.get(page)) is not None:
                prompt = count.read(call.body.encode())
                ids = self._session.conversations.prompt(prompt.messages, prompt.tools).ids
                return _said(count.told(len(ids)))
            if page not in DIALECTS:
                raise no_such_page(call.path)
            asked = dialect.read(call.body.encode())
            if len(self._recorded) + asked.choices > self._most:
                return None
            answer = await self._calls.answer(self._session, asked)
        except FailureError as error:
            if error.failure.kind is FailureKind.TOO_LONG and self._recorded:
                return None
            is_told = isinstance(error, ApiError) or error.failure.kind is FailureKind.REJECTED
            if not is_told or error.failure.kind is FailureKind.TOO_LONG:
                raise
            refusal = as_api_error(error)
            self._refused = refusal.failure.message
            return _said(dialect.refused(refusal), refusal.status or 400)
        if asked.stream:
            body = b"".join(dialect.pieces(answer, asked, int(time.time()))).decode()
            return Action.text(to_json(ProgramAnswer(200, "text/event-stream", body)))
        return _said(dialect.whole(answer, asked, int(time.time())))

    def check_asked(self) -> None:
        """Raises FailureError where the program has ended without an answer of the policy's."""
        if not self._recorded:
            message = f"the agent program has ended, and none of its calls was answered: {self._refused}"
            raise FailureError.of(FailureKind.INVALID, Stage.STEP, message, retryable=False)

    def turns(self, reward: float) -> list[Turn]:
        """Those that were sampled, with the episode's `reward` on the last."""
        return list(self._session.conversations.turns(reward)[0])

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What the policy was asked first."""
        return self._recorded[0].messages if self._recorded else ()

    def info(self) -> dict[str, Any]:
        """As of a session of the gateway's."""
        conversations = self._session.conversations
        return {
            "order": list(conversations.turns()[1]),
            "forks": dict(conversations.forks()),
            "ignored": dict(self._session.ignored),
        }

    @property
    def _recorded(self) -> list[Any]:
        return self._session.conversations.recorded


def _said(body: Mapping[str, Any], status: int = 200) -> Action:
    return Action.text(to_json(ProgramAnswer(status, "application/json", json.dumps(body))))
