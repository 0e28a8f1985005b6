"""The limits of a gateway, each with its unit and its one home."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quintain.failure import QuintainError


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
