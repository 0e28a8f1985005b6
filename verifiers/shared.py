"""The verifiers that many share, so that a pool of checkers is started once and closed once.

What always holds: one verifier for each name and set of options, made when first asked for; one that is in use
is never closed but by `close`; at most `capacity` are kept, and the one that has been idle longest makes room.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from quintain.failure import FailureKind, Stage

if TYPE_CHECKING:
    from quintain.verifiers.base import Verifier

MAX_VERIFIERS: Final = 16
"""Different verifiers at once: each may hold processes, so their number is bounded."""


@dataclass(eq=False, slots=True)
class Kept:
    """A verifier and how many use it."""

    verifier: Verifier
    users: int = 0


class Verifiers:
    """Verifiers by name and options."""

    def __init__(self, capacity: int = MAX_VERIFIERS) -> None:
        self._capacity = capacity
        self._kept: dict[str, Kept] = {}  # the one used last is at the end
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, name: str, options: Mapping[str, Any] | None = None) -> Verifier:
        """The verifier `name` with `options`, until `close`.

        Raises QuintainError where there is none, FailureError (overloaded) where there are too many in use.
        """
        return self.take(name, options or {}).verifier

    def take(self, name: str, options: Mapping[str, Any]) -> Kept:
        """The same, until it is given back with `give_back`."""
        from quintain.verifiers.registry import get_verifier

        key = json.dumps([name, dict(options)], sort_keys=True, default=repr)
        kept = self._kept.pop(key, None)
        if kept is None:
            verifier = get_verifier(name, **options)
            self._make_room(name)
            kept = Kept(verifier)
        self._kept[key] = kept
        kept.users += 1
        return kept

    def give_back(self, kept: Kept) -> None:
        """One user less."""
        kept.users -= 1

    async def close(self) -> None:
        """Close them all; the next `get` makes them anew."""
        kept, self._kept = list(self._kept.values()), {}
        for one in kept:
            await one.verifier.close()
        await asyncio.gather(*self._closing)

    def _make_room(self, name: str) -> None:
        from quintain.serving.refusals import refused

        if len(self._kept) < self._capacity:
            return
        idle = next((key for key, kept in self._kept.items() if not kept.users), None)
        if idle is None:
            message = f"{self._capacity} differently configured verifiers are in use, so {name!r} has no place now"
            raise refused(message, Stage.VERIFY, FailureKind.OVERLOADED)
        closing = asyncio.ensure_future(self._kept.pop(idle).verifier.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
