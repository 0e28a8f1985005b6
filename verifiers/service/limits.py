"""The limits of a verifier service, each with its unit and its one home."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quintain.failure import QuintainError


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What a verifier service allows. All are positive, or None for no limit."""

    queue_items: int = 16384  # in the service at once, those being judged included; more are refused with 429
    concurrent_items: int | None = None  # of these, for one token; by default half, or all where there is one token
    items_per_minute: float | None = None  # for one token, over time; more are refused with 429
    deadline_s: float = 300.0  # the longest deadline of an item
    timeout_s: float = 600.0  # the longest time for a request, and the time where it names none
    read_s: float = 60.0  # how long a request may take to come in
    body_bytes: int = 32 << 20  # the longest request
    waiting_bytes: int = 256 << 20  # requests in the service at once; more are refused with 429
    cache_bytes: int = 64 << 20  # remembered verdicts
    memory_bytes: int = 1 << 30  # the most memory for a program of /run_code
    verifiers: int = 16  # differently configured verifiers at once
    grace_s: float = 10.0  # how long what runs may take to be finished when the service stops
    options_bytes: int = 256 << 10  # the options of one request, as JSON

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not 0 < value < float("inf"):
                raise QuintainError(f"the limit {each.name} must be more than 0, not {value!r}")
