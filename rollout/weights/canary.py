"""The canary: proof that the engine samples with the weights the trainer published.

After every load the engine scores fixed token ids and its log-probabilities must match the trainer's. A stale or
half-loaded weight shows here as nats; rounding shows as hundredths in bfloat16 and as 1e-5 in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintain.arrays import Floats, Ints, as_ints
from quintain.failure import FailureError, FailureKind, Stage

TEXTS = (
    "Water boils at one hundred degrees Celsius at sea level, and it freezes at zero.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "The sum of 17 and 8 is 25, and the product of 6 and 7 is 42.",
)

TOKENS = 16
"""Of each text: enough to see any layer that is wrong, and a tenth of a second on two cores, while sampling waits."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""What rounding explains, by the type computed in: of log-probabilities in nats (here their mean difference), of logits
and hidden states relative to their spread."""


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """Rows of token ids [L], and what the trainer says their log-probabilities are [L - 1]."""

    rows: tuple[Ints, ...]
    logprobs: tuple[Floats, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """|engine - trainer| over all canary tokens, in nats."""

    mean: float
    max: float


def canary_rows(tokenizer: Any) -> tuple[Ints, ...]:
    """The fixed texts as token ids, at most `TOKENS` of each."""
    return tuple(as_ints(tokenizer.encode(text, add_special_tokens=False)[:TOKENS]) for text in TEXTS)


def compare(canary: Canary, scored: Sequence[Floats]) -> Mismatch:
    """How far the engine's scores are from the trainer's. A NaN counts as infinitely far."""
    gaps = np.concatenate([np.abs(a - b) for a, b in zip(canary.logprobs, scored, strict=True)])
    gaps = np.where(np.isfinite(gaps), gaps, np.inf)
    return Mismatch(float(gaps.mean()), float(gaps.max()))


def check(canary: Canary, scored: Sequence[Floats], version: int) -> Mismatch:
    """`compare`, and a publish failure where the mean is above the tolerance."""
    mismatch = compare(canary, scored)
    if not mismatch.mean <= canary.tolerance:
        message = (
            f"the engine does not sample with the weights of version {version}: its log-probabilities differ from the"
            f" trainer's by {mismatch.mean:.3g} nats on average, {canary.tolerance:g} is allowed"
            " (rollout.canary_tolerance)"
        )
        raise FailureError.of(FailureKind.INVALID, Stage.PUBLISH, message, retryable=True)
    return mismatch
