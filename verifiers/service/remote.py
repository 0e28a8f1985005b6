"""The remote verifier: another verifier, asked at a verifier service.

    verifier: remote
    options: {url: "http://verifiers:8100", verifier: math, options: {}, token_env: QUINTAIN_VERIFY_TOKEN}

Its verdicts are the service's. Where the service cannot be reached, the items have failed; where it refuses the
verifier or its options, the call makes no sense and raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.verdict import Verdict
from quintain.verifiers.base import Cost, Item
from quintain.verifiers.client import AsyncVerifierClient
from quintain.verifiers.options import EndpointOptions, Options, OptionsVerifier, Seconds


class RemoteOptions(EndpointOptions):
    """Options of the remote verifier."""

    verifier: Annotated[str, Field(min_length=1)]
    """The name of the verifier there."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options."""
    timeout_s: Seconds = 600.0
    """How long one request may take, waiting included."""
    patience_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """How long a service that cannot be reached is asked again."""


class RemoteVerifier(OptionsVerifier[RemoteOptions]):
    """Judges with a verifier of a verifier service."""

    name: ClassVar[str] = "remote"
    options_type: ClassVar[type[Options]] = RemoteOptions
    cost: Cost = Cost.REMOTE

    def __init__(self, options: RemoteOptions) -> None:
        super().__init__(options)
        self._client = AsyncVerifierClient(
            options.url, options.token(), timeout_s=options.timeout_s, patience_s=options.patience_s
        )

    @property
    def version(self) -> str:
        """The service's version of the verifier, which it is asked for: that blocks for a moment."""
        try:
            known = {info.name: info.version for info in self._client.verifiers_sync()}
        except FailureError:
            known = {}
        return f"{self.options.verifier} {known.get(self.options.verifier) or 'unknown'}"

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; `deadline_s` bounds each item."""
        asked = self.options
        try:
            return await self._client.verify(asked.verifier, items, asked.options, deadline_s=deadline_s)
        except FailureError as error:
            failure = error.failure
            if failure.kind is FailureKind.REJECTED:
                raise QuintainError(f"the verifier service at {asked.url}: {failure.message}") from None
            return [Verdict.unfinished(failure)] * len(items)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
