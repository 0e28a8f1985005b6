"""What every engine shares: which requests it accepts, and how version spans follow from where versions changed.

One place, so that every engine refuses the same requests in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from quintain.arrays import Ints
from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Sampling
from quintain.trajectory import VersionSpan


def check_request(prompt: Ints, sampling: Sampling, *, max_length: int, words: int) -> int:
    """The most tokens the request may get; raises FailureError (`rejected` or `too_long`, at `generate`)."""
    if len(prompt) == 0:
        raise _refused(FailureKind.REJECTED, "the prompt is empty: expected at least one token id")
    check_ids(prompt, words)
    problem = _settings_problem(sampling)
    if problem:
        raise _refused(FailureKind.REJECTED, problem)
    if len(prompt) >= max_length:
        raise _refused(
            FailureKind.TOO_LONG,
            f"the prompt has {len(prompt)} tokens and the engine holds {max_length}, prompt and answer together: "
            "shorten the prompt or raise max_length",
        )
    return min(sampling.max_tokens, max_length - len(prompt))


def check_rows(rows: Sequence[Ints], *, max_length: int, words: int) -> None:
    """Raise FailureError unless every one of `rows` can be scored."""
    for row in rows:
        check_ids(row, words)
        if len(row) > max_length:
            raise _refused(
                FailureKind.TOO_LONG,
                f"a row to score has {len(row)} tokens and the engine holds {max_length}: cut it or raise max_length",
            )


def check_ids(ids: Ints, words: int) -> None:
    """Raise FailureError unless every token id is one of the `words` of the vocabulary."""
    if len(ids) and not (int(np.min(ids)) >= 0 and int(np.max(ids)) < words):
        raise _refused(
            FailureKind.REJECTED,
            f"token ids must be from 0 to {words - 1}, got {int(np.min(ids))} to {int(np.max(ids))}: "
            "the tokenizer and the model do not belong together",
        )


def steady_length(config: Any) -> int | None:
    """The longest row whose numbers do not depend on the rows beside it, by a transformers `config`; None: any.

    LongRoPE and dynamic RoPE change the positions of a whole batch, but not of what is cached already, where its
    longest row is longer than this.
    """
    text = config.get_text_config(decoder=True)
    ropes = getattr(text, "rope_parameters", None) or {}
    bounds = []
    for rope in [ropes] if "rope_type" in ropes else ropes.values():  # one for all layers, or one for each kind
        if rope.get("rope_type") == "longrope":
            bounds.append(int(rope["original_max_position_embeddings"]))
        elif "dynamic" in rope.get("rope_type", ""):
            bounds.append(int(text.max_position_embeddings))
    return min(bounds, default=None)


def spans_between(seams: Sequence[tuple[int, int]], tokens: int) -> tuple[VersionSpan, ...]:
    """The spans that tile 0..`tokens`, from (version, first token it sampled) in order."""
    ends = [start for _, start in seams[1:]] + [tokens]
    return tuple(VersionSpan(version, start, end) for (version, start), end in zip(seams, ends, strict=False))


def _settings_problem(sampling: Sampling) -> str | None:
    """What is wrong with `sampling`, or None."""
    heat = sampling.temperature
    rules: list[tuple[bool, str, float]] = [
        (sampling.max_tokens >= 1, "max_tokens must be at least 1", sampling.max_tokens),
        (math.isfinite(heat) and heat >= 0, "temperature must be a finite number of at least 0", heat),
        (0 < sampling.top_p <= 1, "top_p must be above 0 and at most 1", sampling.top_p),
        (sampling.top_k >= 0, "top_k must be at least 0 (0 turns it off)", sampling.top_k),
    ]
    return next((f"{rule}, not {got!r}" for good, rule, got in rules if not good), None)


def _refused(kind: FailureKind, message: str) -> FailureError:
    return FailureError.of(kind, Stage.GENERATE, message, retryable=False)
