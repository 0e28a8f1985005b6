"""The verifiers that the episodes of one process share, so that a pool of checkers is started once and closed
once.

What always holds: one verifier for each name and set of options, made when first asked for, closed by
`close`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quintain.failure import QuintainError

if TYPE_CHECKING:
    from quintain.verifiers.base import Verifier

MAX_VERIFIERS = 16
"""Different verifiers at once: each may hold processes, so their number is bounded."""


class Verifiers:
    """Verifiers by name and options."""

    def __init__(self) -> None:
        self._made: dict[str, Verifier] = {}

    def get(self, name: str, options: Mapping[str, Any] | None = None) -> Verifier:
        """The verifier `name` with `options`.

        Raises QuintainError where there is none or there are too many.
        """
        from quintain.verifiers.registry import get_verifier

        key = json.dumps([name, dict(options or {})], sort_keys=True, default=repr)
        if key not in self._made:
            if len(self._made) >= MAX_VERIFIERS:
                raise QuintainError(f"this process already holds {MAX_VERIFIERS} differently configured verifiers")
            self._made[key] = get_verifier(name, **(options or {}))
        return self._made[key]

    async def close(self) -> None:
        """Close them all; the next `get` makes them anew."""
        made, self._made = list(self._made.values()), {}
        for verifier in made:
            await verifier.close()
