"""The limits of an environment server, each with its unit and its one home."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quintain.failure import QuintainError


@dataclass(frozen=True, slots=True)
class EnvironmentLimits:
    """What a server allows. All are positive, or None for no limit."""

    max_episodes: int = 1024  # live at once; more wait in a queue
    queue: int = 4096  # episodes that may wait; more are refused with 429
    token_episodes: int | None = None  # live or waiting, of one token
    queue_s: float = 60.0  # how long one may wait before it is refused with 429
    reset_s: float = 60.0
    step_s: float = 60.0
    close_s: float = 5.0
    tasks_s: float = 60.0
    lease_s: float = 600.0  # an episode nobody touches for so long is closed
    finished: int = 4096  # ended episodes whose answers are kept for retries ...
    finished_bytes: int = 64 * 1024 * 1024  # ... and how large these may be together
    body_bytes: int = 8 * 1024 * 1024  # the longest request

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not value > 0:
                raise QuintainError(f"the limit {f.name} must be more than 0, not {value!r}")
