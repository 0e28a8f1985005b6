"""When a client asks again: a pure decision over failures and readings of a clock.

Every request of ours may be repeated (ids and turn numbers make it safe), so all that matters is whether
waiting can help: a server that refuses for now is asked again until the call's whole time is up, one that
cannot be reached only for `patience_s`, and everything else is final.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from quintain.failure import Failure, FailureError

FIRST_WAIT_S = 0.05
MAX_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`timeout_s`: for one call, waiting included. `patience_s`: with a server that cannot be reached."""

    timeout_s: float = 300.0
    patience_s: float = 10.0


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server that answered with `headers` wants to be left alone, in seconds, if it says so."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):  # a date: our own waits do as well
        return None


class Retry:
    """One call's patience. Every method takes the time now, in seconds."""

    def __init__(self, policy: RetryPolicy, rng: random.Random, now: float) -> None:
        self._policy, self._rng = policy, rng
        self._until = now + policy.timeout_s
        self._silent_since: float | None = None
        self._next_s = FIRST_WAIT_S

    def left(self, now: float) -> float:
        """How long the next try may take."""
        return max(0.001, self._until - now)

    def refused(self, failure: Failure, now: float, retry_after_s: float = 0.0) -> float:
        """How long to wait after a refusal that may pass. Raises FailureError where time is up."""
        self._silent_since = None
        return self._wait(failure, now, self._until, retry_after_s)

    def silent(self, failure: Failure, now: float) -> float:
        """How long to wait after no answer at all. Raises FailureError where patience or time is up."""
        self._silent_since = now if self._silent_since is None else self._silent_since
        return self._wait(failure, now, min(self._until, self._silent_since + self._policy.patience_s), 0.0)

    def _wait(self, failure: Failure, now: float, until: float, at_least_s: float) -> float:
        # spread out, so that those that were refused together do not come back together
        wait = at_least_s + self._next_s * self._rng.uniform(0.5, 1.5)
        self._next_s = min(MAX_WAIT_S, 2 * self._next_s)
        if now + wait >= until:
            raise FailureError(failure)
        return wait
