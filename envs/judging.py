"""Environments that ask verifiers: the verifiers of a host are shared by its episodes, and started once.

What always holds: an environment that is used alone makes its own verifiers and closes them; those of a host are
the host's to close.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quintain.envs.base import Environment
from quintain.verdict import Verdict
from quintain.verifiers.shared import Verifiers

if TYPE_CHECKING:
    from quintain.verifiers.base import Verifier


class JudgingEnv(Environment):
    """An environment with verifiers by name; subclasses ask them with `judge`."""

    verifiers: Verifiers | None = None  # a host's, shared by its episodes; else this environment makes its own
    _own: Verifiers | None = None

    async def judge(self, name: str, answer: str, reference: Any, options: Mapping[str, Any] | None = None) -> Verdict:
        """What the verifier `name`, made with `options`, says about `answer`.

        Raises QuintainError where there is no such verifier or option.
        """
        from quintain.verifiers.base import Item

        (verdict,) = await self.verifier_called(name, options).verify([Item(answer, reference)])
        return verdict

    def verifier_called(self, name: str, options: Mapping[str, Any] | None = None) -> Verifier:
        """The verifier `name`, made with `options`: not the environment's to close. Raises QuintainError likewise."""
        if self.verifiers is None:
            self.verifiers = self._own = Verifiers()
        return self.verifiers.get(name, options)

    async def close(self) -> None:
        """Close the verifiers, unless they are shared."""
        if self._own is not None:
            await self._own.close()
