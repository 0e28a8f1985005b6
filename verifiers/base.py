"""The interface of a verifier: batches in, verdicts out, in the same order.

What always holds for every verifier:
- `verify` gives exactly one verdict for each item, at the item's own place;
- what one item does (hang, crash, exhaust memory) never changes another item's verdict;
- what broke is a verdict with a failure, never an exception and never a score; `verify` raises only where the
  whole call makes no sense: a closed verifier, or an installation that lacks what it needs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from quintain.closing import AsyncClosing
from quintain.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to judge. `answer` is the model's text; what `reference` must be is up to the verifier."""

    answer: str
    reference: Any = None


class Cost(IntEnum):
    """What one item costs, in orders of magnitude: a rubric asks the cheap verifiers first."""

    PURE = 1  # microseconds in this process
    WORKER = 2  # milliseconds in a killable worker process
    SANDBOX = 3  # a sandboxed program: tens of milliseconds to seconds
    MODEL = 4  # a forward pass of a model on this machine
    REMOTE = 5  # a request to somebody else's endpoint, which may cost money


class Verifier(AsyncClosing):
    """Judges answers. One instance serves many concurrent calls on one event loop.

    `name` is what the registry calls it. `version` changes whenever the same item under the same options
    could get another verdict, so a verdict may be cached under (name, version, options, item). `options_type` is
    the class of its options, a pydantic model or a dataclass.
    """

    name: ClassVar[str]
    options_type: ClassVar[type | None] = None
    cost: Cost = Cost.WORKER

    @classmethod
    def options_schema(cls) -> dict[str, Any]:
        """The JSON schema of the options; `{}`, which allows anything, where the class declares none."""
        from pydantic import TypeAdapter

        if cls.options_type is None:
            return {}
        return {"additionalProperties": False} | TypeAdapter(cls.options_type).json_schema()

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of the judgement, the versions of the libraries it depends on included."""

    @abstractmethod
    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order. `deadline_s` bounds each item, not the batch."""

    async def close(self) -> None:
        """Give back what the verifier holds; no process of its own is left. Calling it twice is allowed."""
