"""One session: its conversations, its calls under way, and what becomes of it.

What always holds: a session ends once, as one trajectory; a call that failed and was not answered later makes that
trajectory a failure. No clocks and no sockets: times are given.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from quintain.arrays import Ints
from quintain.failure import Failure, FailureKind, Stage
from quintain.rollout.gateway.conversations import Conversations, digest_of
from quintain.rollout.gateway.wire import FailRequest, OpenSession, RewardRequest, SessionState, SessionStatus
from quintain.rollout.rules.order import derive_seed
from quintain.trajectory import Ending, Trajectory


@dataclass(slots=True, eq=False)
class AgentSession:
    """A session by its `id`; `seed` is what its samples' seeds are derived from."""

    id: str
    asked: OpenSession
    seed: int
    conversations: Conversations
    opened_s: float
    touched_s: float
    state: SessionState = SessionState.LIVE
    calls: set[asyncio.Task[Any]] = field(default_factory=set)
    ending: asyncio.Task[None] | None = None
    end: RewardRequest | FailRequest | None = None  # what ended it, or is about to
    truncated: bool = False
    made_calls: int = 0  # tool calls
    output_tokens: int = 0
    failed_calls: int = 0
    waiting: int = 0  # samples that are under way, for the limit of turns
    ignored: Counter[str] = field(default_factory=Counter)
    final: SessionStatus | None = None
    _unanswered: dict[str, Failure] = field(default_factory=dict)
    _draws: dict[bytes, set[int]] = field(default_factory=dict)

    def draw(self, prompt: Ints, seed: int | None) -> tuple[int, int]:
        """The seed for a sample of `prompt`, and its number among the samples of this prompt (for `undraw`).

        It depends on the prompt and not on what else the session does, so a session that repeats is sampled alike.
        """
        key = digest_of(prompt)
        taken = self._draws.setdefault(key, set())
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        taken.add(number)
        return derive_seed(self.seed if seed is None else seed, key.hex(), number), number

    def undraw(self, prompt: Ints, number: int) -> None:
        """The sample was never given to anybody: the next one may be the same."""
        self._draws[digest_of(prompt)].discard(number)

    def failed_call(self, call: str, failure: Failure) -> None:
        """The engine failed at the request whose digest is `call`."""
        self.failed_calls += 1
        self._unanswered.pop(call, None)
        self._unanswered[call] = failure

    def answered(self, call: str) -> None:
        """The request was answered, whatever came before."""
        self._unanswered.pop(call, None)

    @property
    def unanswered(self) -> Failure | None:
        """The newest failure of a call that was not answered later."""
        return next(reversed(self._unanswered.values()), None)

    def trajectory(self, end: RewardRequest | FailRequest, now_s: float, *, said: bool = True) -> Trajectory:
        """What the session is when `end` ends it, with or without what was said of it (info, metadata)."""
        failure = self._failure(end)
        reward = end.reward if failure is None and isinstance(end, RewardRequest) else None
        turns, order = self.conversations.turns(reward or 0.0)
        recorded, asked = self.conversations.recorded, self.asked
        gateway = {
            "order": list(order),
            "forks": dict(self.conversations.forks()),
            "ignored": dict(self.ignored),
            "failed_calls": self.failed_calls,
        }
        cut = self.truncated or (isinstance(end, RewardRequest) and end.truncated)
        return Trajectory(
            self.id,
            asked.group or self.id,
            asked.task or self.id,
            asked.index,
            asked.member,
            self.seed,
            turns,
            Ending.FAILED if failure else Ending.TRUNCATED if cut else Ending.TERMINATED,
            reward,
            failure,
            dict(end.rewards) if isinstance(end, RewardRequest) and failure is None else {},
            recorded[0].messages if recorded else (),
            {**(dict(end.info) | {"metadata": asked.metadata} if said else {}), "gateway": gateway},
            elapsed_s=now_s - self.opened_s,
            environment=asked.environment,
            task_id=asked.task,
        )

    def status(self, lease_s: float) -> SessionStatus:
        """The session now; once it has ended, as it was then."""
        return self.final or SessionStatus(
            self.id,
            self.state,
            self.asked.task or self.id,
            self.asked.group or self.id,
            len(self.conversations.recorded),
            len(self.calls),
            self.output_tokens,
            dict(self.conversations.forks()),
            dict(self.ignored),
            self.truncated,
            self.failed_calls,
            self.unanswered,
            None,
            None,
            lease_s,
        )

    def _failure(self, end: RewardRequest | FailRequest) -> Failure | None:
        if isinstance(end, FailRequest):
            return Failure.of(end.kind, Stage.STEP, end.message)
        if self.unanswered is not None and not (end.despite_failures and self.conversations.recorded):
            return self.unanswered
        if not self.conversations.recorded:
            return Failure.of(FailureKind.TOO_LONG, Stage.RENDER, "the first prompt was too long: no turn was sampled")
        return None
