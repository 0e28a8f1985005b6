"""What a rubric's parts make together, and which part to ask next. Pure.

A part's finding is its score in [0, 1], or `FAILED` where its verdict was a failure. The four modes, for parts with
weights w, scores s and thresholds t:
- `weighted_sum`: sum(w s) / sum(w); a failed part fails it.
- `gate`: the score of the one part that is no gate, if every gate has s >= t, else 0. It is 0 as soon as one gate is
  shut or that score is 0, whatever failed elsewhere.
- `sequence`: in the order given, up to and with the first part with s < t: the weights of the parts that passed, and
  w s of the one that did not, of sum(w). A part that failed, reached, fails it.
- `maximum`: the largest s. It is 1 as soon as one is, whatever failed elsewhere.

What always holds: what is decided early is what all parts together would decide; except in a sequence, the order of
the parts does not matter, and the cheapest unknown one is asked next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Mode = Literal["weighted_sum", "gate", "sequence", "maximum"]


class Failed(Enum):
    """A part whose verdict was a failure, and what becomes of a rubric that needs it."""

    FAILED = "failed"


FAILED = Failed.FAILED
Finding = float | Literal[Failed.FAILED]


@dataclass(frozen=True, slots=True)
class Part:
    """What the plan knows about a part. `cost` only orders the asking."""

    weight: float = 1.0
    passes_at: float = 1.0
    gate: bool = False
    cost: int = 0


def decided(mode: Mode, parts: Sequence[Part], found: Mapping[int, Finding]) -> Finding | None:
    """What the findings so far, by the parts' places, decide: a score, a failure, or None where others matter."""
    match mode:
        case "weighted_sum":
            return _weighted_sum(parts, found)
        case "gate":
            return _gate(parts, found)
        case "sequence":
            return _sequence(parts, found)
        case "maximum":
            return _maximum(parts, found)


def next_part(mode: Mode, parts: Sequence[Part], found: Mapping[int, Finding]) -> int:
    """The place of the part to ask next; only where nothing is decided yet."""
    unknown = [place for place in range(len(parts)) if place not in found]
    return unknown[0] if mode == "sequence" else min(unknown, key=lambda place: (parts[place].cost, place))


def _weighted_sum(parts: Sequence[Part], found: Mapping[int, Finding]) -> Finding | None:
    if FAILED in found.values():
        return FAILED
    if len(found) < len(parts):
        return None
    return _share(parts, {place: score for place, score in found.items() if isinstance(score, float)})


def _gate(parts: Sequence[Part], found: Mapping[int, Finding]) -> Finding | None:
    result: Finding | None = None
    for place, finding in found.items():
        if finding is FAILED:
            continue
        part = parts[place]
        if finding < part.passes_at if part.gate else finding == 0.0:
            return 0.0
        if not part.gate:
            result = finding
    if len(found) < len(parts):
        return None
    return FAILED if FAILED in found.values() else result


def _sequence(parts: Sequence[Part], found: Mapping[int, Finding]) -> Finding | None:
    scores: dict[int, float] = {}
    for place, part in enumerate(parts):
        finding = found.get(place)
        if finding is None or finding is FAILED:
            return finding
        scores[place] = finding if finding < part.passes_at else 1.0
        if finding < part.passes_at:
            break
    return _share(parts, scores)


def _maximum(parts: Sequence[Part], found: Mapping[int, Finding]) -> Finding | None:
    scores = [finding for finding in found.values() if finding is not FAILED]
    if 1.0 in scores:
        return 1.0
    if len(found) < len(parts):
        return None
    return FAILED if FAILED in found.values() else max(scores)


def _share(parts: Sequence[Part], scores: Mapping[int, float]) -> float:
    earned = math.fsum(parts[place].weight * score for place, score in scores.items())
    return min(earned / math.fsum(part.weight for part in parts), 1.0)
