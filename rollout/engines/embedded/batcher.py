"""Which waiting requests start, and which prompts are read together. Pure: sizes in, decisions out.

Invariants:
- requests start in the order they wait in; none overtakes;
- rows x the longest sequence they may become stays within the cache's tokens, except that one row always fits;
- a prompt that several requests share is read once;
- a batch of prompts, padded to its longest, stays within the token budget, except that one prompt always fits;
- in lockstep a cohort starts only when the engine is idle and as many requests wait as sessions are able to submit,
  runs to its end with nobody admitted meanwhile, and has its rows in the order of their sessions' names;
- it starts without the others where none of them has come for as long as `patience_s`: they may be waiting for
  something that those who wait here hold.

Lockstep is for runs that are the same bit for bit: floating-point sums depend on the shape of the batch they were
computed in, so a batch made of whoever has arrived already is a race, and a cohort that is not whole is one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quintain.rollout.engines.embedded.kv import padded_rows, padded_tokens


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much fits: rows at once, tokens of the cache (rows x padded length), tokens of one prefill."""

    rows: int
    cache_tokens: int
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One prefill: distinct prompts, and for each of its rows (by index into what was planned) which prompt it has."""

    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    source: tuple[int, ...]


def admit(waiting: Sequence[int], running: Sequence[int], limits: BatchLimits) -> int:
    """How many of `waiting` may start. Both are the most tokens each row may come to hold."""
    longest = max(running, default=0)
    count = 0
    for tokens in waiting:
        longest = max(longest, tokens)
        rows = len(running) + count + 1
        if rows > limits.rows or (rows > 1 and padded_rows(rows) * padded_tokens(longest) > limits.cache_tokens):
            break
        count += 1
    return count


def plan(prompts: Sequence[Sequence[int]], limits: BatchLimits) -> list[Reading]:
    """How to read `prompts`, in batches of similar lengths, each distinct prompt once."""
    sharing: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        sharing.setdefault(tuple(prompt), []).append(row)
    batches: list[list[tuple[int, ...]]] = []
    for prompt in sorted(sharing, key=len):
        # Ascending, so the newest is the longest, and pads all of its batch.
        if batches and (len(batches[-1]) + 1) * len(prompt) <= limits.prefill_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
    return [_reading(batch, sharing) for batch in batches]


def _reading(batch: list[tuple[int, ...]], sharing: dict[tuple[int, ...], list[int]]) -> Reading:
    pairs = sorted((row, index) for index, prompt in enumerate(batch) for row in sharing[prompt])
    return Reading(tuple(batch), tuple(row for row, _ in pairs), tuple(index for _, index in pairs))


@dataclass(slots=True)
class Cohort:
    """The gate of a lockstep engine. `expected` is the newest count of sessions that are able to submit."""

    patience_s: float
    expected: int = 0

    def ready(self, waiting: int, running: int, still_s: float = 0.0) -> bool:
        """Whether the `waiting` requests may start now, when nothing has changed for `still_s` seconds.

        More than expected counts as all of them.
        """
        return running == 0 and waiting > 0 and (waiting >= self.expected or still_s >= self.patience_s)
