"""The gateway: sessions in which an agent program of somebody else's drives the policy.

    open -> chat, chat, ... -> reward | fail     (or the lease runs out)     -> one trajectory

What always holds:
- a session ends once, and its trajectory is handed to `on_finished` before whoever ended it is answered: a reward that
  was acknowledged is in the sink's hands. Where the sink fails, the session is live again and may be ended again;
- a turn is recorded when its sample is whole; a client that goes away ends the sampling, and nothing is recorded;
- at most `limits.max_sessions` are live, and each of them only as long as somebody calls it within its lease.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields, replace

from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, failure_from
from quintain.nearest import IDENTIFIER
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Engine, Sampling
from quintain.rollout.gateway.answers import Answer
from quintain.rollout.gateway.calls import Calls
from quintain.rollout.gateway.chat import ChatRequest
from quintain.rollout.gateway.conversations import Conversations, meaning
from quintain.rollout.gateway.errors import ApiError, bad_request, full
from quintain.rollout.gateway.session import AgentSession
from quintain.rollout.gateway.wire import (
    FailRequest,
    OpenSession,
    RewardRequest,
    SessionOpened,
    SessionState,
    SessionStatus,
)
from quintain.rollout.rules.order import derive_seed
from quintain.serving.tokens import Tokens
from quintain.trajectory import Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """What a gateway allows. All are positive."""

    max_sessions: int = 1024  # live at once; more are refused with 429
    max_turns: int = 256  # of one session, over all its conversations
    max_calls: int = 64  # of one session, under way at once; more are refused with 429
    max_choices: int = 16  # samples that one call may ask for (`n`)
    lease_s: float = 600.0  # a session that nobody calls for so long has failed
    finished: int = 4096  # ended sessions whose status is kept
    body_bytes: int = 16 * 1024 * 1024  # the longest request
    body_s: float = 60.0  # how long one may take to come in
    keep_alive_s: float = 10.0  # between two signs of life of a stream

    def __post_init__(self) -> None:
        for f in fields(self):
            if not getattr(self, f.name) > 0:
                raise QuintainError(f"the limit {f.name} must be more than 0, not {getattr(self, f.name)!r}")


@dataclass(slots=True)
class GatewayCounters:
    """What happened since the start, for metrics. Sessions by how they ended, failures by kind, forks by reason."""

    ended: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    forks: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


class Gateway:
    """Sessions over `engine`, rendered and read by `chat`, sampled as `sampling` says.

    `on_finished` takes each trajectory; it raises where it cannot (a full disk), and the session can be ended again;
    QuintainError says that it never can: the session ends as a failure without what harness and agent said of it.
    `model` is the policy's name to agents. `max_length` bounds prompt and answer together, in tokens. `tokens` make
    the keys of the sessions' agents. `clock` (seconds) is for leases and durations. Call `close` at the end.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        *,
        sampling: Sampling,
        on_finished: Callable[[Trajectory], Awaitable[None]],
        model: str = "policy",
        seed: int = 0,
        max_length: int | None = None,
        limits: GatewayLimits | None = None,
        tokens: Tokens | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.limits, self.counters = model, limits or GatewayLimits(), GatewayCounters()
        self.chat_layer = chat
        self._calls = Calls(engine, chat, sampling, max_length or engine.max_length, clock)
        self._on_finished, self._tokens = on_finished, tokens or Tokens()
        self._seed, self._clock = seed, clock
        self._live: dict[str, AgentSession] = {}
        self._ended: dict[str, AgentSession] = {}
        self._oldest: deque[str] = deque()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def live(self) -> int:
        """Sessions that have not ended."""
        return len(self._live)

    def open(self, asked: OpenSession, base: str = "") -> SessionOpened:
        """Begin a session, or find the one that the same request began. `base` is the address of the gateway's root."""
        self._check(asked)
        known = self._find(asked.id) if asked.id else None
        if known is None:
            known = self._begin(asked)
        elif known.asked != asked:
            raise _conflict(f"session {known.id} was opened by another request: choose another id")
        key, url = self._tokens.agent_key(known.id), f"{base}/sessions/{known.id}/v1"
        return SessionOpened(known.id, url, key, self.model, self.limits.lease_s)

    async def chat(self, session_id: str, asked: ChatRequest) -> Answer:
        """Sample the answer to one call. Cancelling this cancels the sampling. Raises FailureError."""
        session = self._usable(session_id)
        self.check_model(session_id, asked.model)
        self._room(session, asked)
        call = _digest_of(asked)
        work = asyncio.ensure_future(self._calls.answer(session, asked))
        session.calls.add(work)
        session.waiting += asked.choices
        try:
            answer = await work
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise _conflict(f"session {session.id} was ended while this was sampled", status=410) from None
        except Exception as error:  # the boundary: whatever broke is kept with the session
            if not isinstance(error, FailureError):
                log.exception("a call of session %s failed", session.id)
            failed = error if isinstance(error, FailureError) else FailureError(failure_from(error, Stage.GENERATE))
            self._remember(session, call, failed)
            raise failed from None
        finally:
            session.calls.discard(work)
            session.waiting -= asked.choices
            session.touched_s = self._clock()
        session.answered(call)
        self.counters.turns += len(answer.choices)
        return answer

    def count(self, session_id: str, asked: ChatRequest) -> int:
        """How many tokens `asked` would be sampled after, now. Raises FailureError."""
        session = self._usable(session_id)
        self.check_model(session_id, asked.model)
        return len(session.conversations.prompt(asked.messages, asked.tools).ids)

    async def reward(self, session_id: str, asked: RewardRequest) -> SessionStatus:
        """End a session with its reward. The same request again is answered again."""
        session = self._session(session_id)
        nothing = not session.conversations.recorded and not session.truncated and session.unanswered is None
        if session.state is SessionState.LIVE and nothing:
            raise _conflict(f"session {session.id} has no turn that a reward could be for: end it with /fail")
        return await self._finish(session, asked, "rewarded")

    async def fail(self, session_id: str, asked: FailRequest) -> SessionStatus:
        """End a session as a failure. The same request again is answered again."""
        return await self._finish(self._session(session_id), asked, "failed")

    def status(self, session_id: str) -> SessionStatus:
        """Where a session stands; this renews its lease."""
        session = self._session(session_id)
        session.touched_s = self._clock()
        return session.status(self.limits.lease_s)

    def models(self, session_id: str) -> tuple[str, ...]:
        """The names that the agent of a session may call the policy by."""
        return (self.model, *self._session(session_id).asked.models)

    def check_model(self, session_id: str, name: str) -> None:
        """Raises ApiError (404) where the policy has another name."""
        if name not in self.models(session_id):
            message = f"this session's model is {self.model!r}; open it with models [{name!r}] to call it so"
            raise ApiError(
                Failure.of(FailureKind.REJECTED, Stage.REQUEST, message), 404, code="model_not_found", param="model"
            )

    async def sweep(self) -> None:
        """End the sessions whose lease has run out."""
        now_s = self._clock()
        for session in list(self._live.values()):
            if session.calls or session.ending or now_s - session.touched_s < self.limits.lease_s:
                continue
            message = f"nobody called the session for {self.limits.lease_s:g} s"
            await self._end_or_log(session, FailRequest(message, FailureKind.LOST), "expired")

    async def close(self) -> None:
        """End every session as cancelled; open no more. May be repeated."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        for session in list(self._live.values()):
            await self._end_or_log(session, FailRequest("the gateway was closed", FailureKind.CANCELLED), "closed")

    def _begin(self, asked: OpenSession) -> AgentSession:
        if self._closed:
            failure = Failure.of(FailureKind.UNREACHABLE, Stage.REQUEST, "the gateway opens no more sessions")
            raise ApiError(failure, 503, code="shutting_down")
        if len(self._live) >= self.limits.max_sessions:
            raise full(f"all {self.limits.max_sessions} sessions are taken")
        name, now_s = asked.id or uuid.uuid4().hex, self._clock()
        seed = derive_seed(self._seed, "session", name) if asked.seed is None else asked.seed
        session = AgentSession(name, asked, seed, Conversations(self.chat_layer), now_s, now_s)
        self._live[name] = session
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_on())
        return session

    async def _finish(self, session: AgentSession, end: RewardRequest | FailRequest, how: str) -> SessionStatus:
        if session.end is not None and session.end != end:
            raise _conflict(f"session {session.id} was ended by another request; it is {session.state}")
        if session.state is SessionState.LIVE:
            if session.ending is None:
                session.end = end
                session.ending = asyncio.create_task(self._hand_over(session, end, how))
                session.ending.add_done_callback(_looked_at)
            await asyncio.shield(session.ending)  # what was begun goes on though the client hangs up
        return session.status(self.limits.lease_s)

    async def _hand_over(self, session: AgentSession, end: RewardRequest | FailRequest, how: str) -> None:
        try:
            for call in session.calls:
                call.cancel()
            if session.calls:
                await asyncio.wait(session.calls)
            try:
                trajectory = session.trajectory(end, self._clock())
                await self._on_finished(trajectory)
            except QuintainError as error:  # what was said of it can never be written: it ends without that
                why = FailRequest(f"the session cannot be written: {error}", FailureKind.INVALID)
                trajectory = session.trajectory(why, self._clock(), said=False)
                await self._on_finished(trajectory)
        except Exception as error:  # the boundary: the sink may break in any way
            session.end = session.ending = None
            raise FailureError(failure_from(error, Stage.JOURNAL)) from error
        failure = trajectory.failure
        state = SessionState.FAILED if failure else SessionState.DONE
        session.final = replace(
            session.status(self.limits.lease_s), state=state, calls=0, reward=trajectory.reward, failure=failure
        )
        session.state, session.conversations = state, Conversations(self.chat_layer)  # its tokens are the sink's now
        self._keep(session)
        self.counters.ended[how] += 1
        self.counters.forks.update(turn.fork for turn in trajectory.turns if turn.fork is not None)
        if failure is not None:
            self.counters.failures[failure.kind] += 1

    def _keep(self, session: AgentSession) -> None:
        del self._live[session.id]
        self._ended[session.id] = session
        self._oldest.append(session.id)
        while len(self._oldest) > self.limits.finished:
            del self._ended[self._oldest.popleft()]

    async def _end_or_log(self, session: AgentSession, end: FailRequest, how: str) -> None:
        try:
            await self._finish(session, end, how)
        except Exception:  # the boundary: it stays live, and the next sweep tries again
            log.exception("session %s could not be ended", session.id)

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, self.limits.lease_s / 10))
            await self.sweep()

    def _remember(self, session: AgentSession, call: str, error: FailureError) -> None:
        """Refusals are the agent's to mend; what the engine could not do is kept against the session's reward."""
        kind = error.failure.kind
        if kind is FailureKind.TOO_LONG:
            session.truncated = True
        elif not isinstance(error, ApiError) and error.failure.stage is not Stage.RENDER:
            session.failed_call(call, error.failure)

    def _room(self, session: AgentSession, asked: ChatRequest) -> None:
        if asked.choices > self.limits.max_choices:
            raise bad_request(f"n must be at most {self.limits.max_choices}, not {asked.choices}", param="n")
        if len(session.calls) >= self.limits.max_calls:
            raise full(f"{len(session.calls)} calls of this session are under way: wait for one")
        most = min(session.asked.max_turns or self.limits.max_turns, self.limits.max_turns)
        if len(session.conversations.recorded) + session.waiting + asked.choices > most:
            session.truncated = True
            failure = Failure.of(FailureKind.REJECTED, Stage.REQUEST, f"a session has at most {most} turns")
            raise ApiError(failure, 400, code="max_turns_exceeded")

    def _check(self, asked: OpenSession) -> None:
        if asked.id is not None and not IDENTIFIER.fullmatch(asked.id):
            raise bad_request(f"an id is 1 to 64 letters, digits, '_', '-' or '.', not {asked.id!r}", param="id")
        for name in ("max_turns", "max_length", "max_tokens"):
            value = getattr(asked, name)
            if value is not None and value < 1:
                raise bad_request(f"{name} must be at least 1, not {value}", param=name)

    def _find(self, session_id: str) -> AgentSession | None:
        return self._live.get(session_id) or self._ended.get(session_id)

    def _session(self, session_id: str) -> AgentSession:
        session = self._find(session_id)
        if session is None:
            message = f"there is no session {session_id[:64]!r}: it was never opened, or this server was restarted"
            raise ApiError(Failure.of(FailureKind.LOST, Stage.REQUEST, message), 404, code="session_not_found")
        return session

    def _usable(self, session_id: str) -> AgentSession:
        session = self._session(session_id)
        if session.state is not SessionState.LIVE or session.ending is not None:
            raise _conflict(f"session {session.id} has ended", status=410)
        session.touched_s = self._clock()
        return session


def _conflict(message: str, *, status: int = 409) -> ApiError:
    return ApiError(Failure.of(FailureKind.REJECTED, Stage.REQUEST, message), status, code="session_conflict")


def _looked_at(task: asyncio.Task[None]) -> None:
    """Whoever ended the session may have hung up before it failed: then nobody else asks for the exception."""
    if not task.cancelled() and task.exception() is not None:
        log.warning("a session could not be handed over: %s", task.exception())


def _digest_of(asked: ChatRequest) -> str:
    """The same for a call and its repetition."""
    parts = [meaning(message) for message in asked.messages]
    return hashlib.blake2b(repr((parts, asked.tools, asked.stops)).encode(), digest_size=16).hexdigest()


class Outbox:
    """An `on_finished` that another task iterates over: at most `most` trajectories that nobody has taken yet.

    Nothing is dropped: where nobody takes, whoever ends a session waits.
    """

    def __init__(self, most: int = 1024) -> None:
        self._queue: asyncio.Queue[Trajectory] = asyncio.Queue(most)

    async def __call__(self, trajectory: Trajectory) -> None:
        """Put it in, waiting for room."""
        await self._queue.put(trajectory)

    async def __aiter__(self) -> AsyncIterator[Trajectory]:
        """Every trajectory, once and in order, without an end."""
        while True:
            yield await self._queue.get()
