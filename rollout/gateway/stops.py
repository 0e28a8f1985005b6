"""Stop strings: where a sample ends that an engine with token ids only has carried on too far.

Cutting a sample at the first token that completes a stop string gives exactly what an engine would have sampled that
watches for the string, because whether to stop depends on nothing that comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quintain.codec import Ints
from quintain.rollout.engines.base import Completion
from quintain.trajectory import Finish, VersionSpan


@dataclass(frozen=True, slots=True)
class Cut:
    """The first `tokens` of a sample complete a stop string; `text` is what they say before it."""

    tokens: int
    text: str


def first_stop(ids: Ints, decode: Callable[[Ints], str], stops: Sequence[str]) -> Cut | None:
    """Where the first of `stops` is complete, by bisection over the tokens. None where none of them is said."""

    def place(tokens: int) -> int:
        said = decode(ids[:tokens])
        return min((at for stop in stops if (at := said.find(stop)) >= 0), default=-1)

    if not stops or place(len(ids)) < 0:
        return None
    without, having = 0, len(ids)
    while having - without > 1:
        middle = (without + having) // 2
        without, having = (without, middle) if place(middle) >= 0 else (middle, having)
    return Cut(having, decode(ids[:having])[: place(having)])


def cut(completion: Completion, tokens: int) -> Completion:
    """The first `tokens` of `completion`, as told to stop there. Nothing where that is all of it."""
    spans = tuple(
        VersionSpan(span.version, span.start, min(span.end, tokens))
        for span in completion.versions
        if span.start < tokens
    )
    return Completion(completion.output_ids[:tokens], completion.logprobs[:tokens], Finish.ABORT, spans)
