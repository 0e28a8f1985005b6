"""Verifiers in a file, as `quintain reverify --verifier FILE.py:object` takes them."""

from __future__ import annotations

from collections.abc import Sequence

from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item, Verifier


def starts_alike(answer: str, reference: str, *, letters: int = 1) -> float:
    if answer == "boom":
        raise RuntimeError("the verifier is broken")
    return float(answer[:letters] == reference[:letters])


class Always(Verifier):
    """The same score for everything."""

    name = "always"
    version = "3"

    def __init__(self, score: float = 1.0) -> None:
        self.score = score

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        return [Verdict(self.score, Outcome.PARTIAL) for _ in items]


made = Always(0.5)
number = 3
