"""The length verifier: scores that make an answer shorter, longer, or less repetitive. Each is in [0, 1].

L is the length of the answer in the chosen unit. Whoever sampled the answer knows its tokens: a reference
`{"length": n}` is then L. Any other reference is not looked at.

- `soft_overlong`: DAPO's soft overlong punishment (Yu et al. 2025, equation 13) with `maximum` = L_max and `cache` =
  L_cache: 0 up to L_max - L_cache, then (L_max - L_cache - L) / L_cache down to -1 at L_max, and -1 beyond. The
  punishment p is in [-1, 0]; the score is 1 + p. In a rubric of weight w the score adds w(1 + p): the paper's
  reward and a constant.
- `cosine`: the cosine schedule (Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", CosFn):
  end + (start - end)(1 + cos(pi L / maximum)) / 2, from `start` at L = 0 to `end` at L = maximum; `exceeded` beyond.
  The paper has one schedule for correct and one for wrong answers: use two in a rubric, each behind a gate.
- `repetition`: an n-gram repetition penalty (after the same paper, section 4.3): the share of the answer's n-grams
  of words that are different, distinct / all, over its first 100,000 words; 1 where there are fewer words than n.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from quintain.verdict import Verdict
from quintain.verifiers.options import Count, Options, Positive, Unit
from quintain.verifiers.pure import PureVerifier, bad_reference

MAX_WORDS: Final = 100_000
"""Repetition is looked for in so many words: each n-gram is kept in memory."""


class LengthOptions(Options):
    """Options of the length verifier."""

    kind: Literal["soft_overlong", "cosine", "repetition"] = "soft_overlong"
    """Which of the three scores."""
    unit: Literal["words", "characters"] = "words"
    """What is counted where the reference does not give the length; words are what white space separates."""
    maximum: Positive = 1024
    """`soft_overlong`: the length from which the score is 0; `cosine`: the length at which it is `end`."""
    cache: Count = 256
    """`soft_overlong`: over how much below `maximum` the score falls from 1 to 0; 0 is a hard limit."""
    start: Unit = 1.0
    """`cosine`: the score of an answer of length 0."""
    end: Unit = 0.5
    """`cosine`: the score at `maximum`."""
    exceeded: Unit = 0.0
    """`cosine`: the score beyond `maximum`."""
    n: Annotated[int, Field(ge=1, le=16)] = 4
    """`repetition`: how many words an n-gram has."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "soft_overlong" and self.cache > self.maximum:
            raise ValueError(f"cache is at most maximum ({self.maximum}), not {self.cache}")
        return self


class LengthVerifier(PureVerifier[LengthOptions]):
    """Scores the length or the repetitiveness of an answer."""

    name: ClassVar[str] = "length"
    options_type: ClassVar[type[Options]] = LengthOptions

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The score, with what was counted in the detail."""
        options = self.options
        if options.kind == "repetition":
            distinct, total = ngrams(answer.split(None, MAX_WORDS)[:MAX_WORDS], options.n)
            return Verdict.scored(distinct / total if total else 1.0, distinct=distinct, ngrams=total)
        length = len(answer) if options.unit == "characters" else len(answer.split())
        if isinstance(reference, dict) and "length" in reference:
            length = reference["length"]
            if not isinstance(length, int) or isinstance(length, bool) or length < 0:
                return bad_reference('{"length": a whole number from 0}, or anything without a length', length)
        if options.kind == "soft_overlong":
            score = 1.0 + soft_overlong(length, options.maximum, options.cache)
        elif length > options.maximum:
            score = options.exceeded
        else:
            score = cosine(length, options.maximum, options.start, options.end)
        return Verdict.scored(score, length=length)


def soft_overlong(length: int, maximum: int, cache: int) -> float:
    """DAPO's punishment in [-1, 0] (equation 13); with a cache of 0, -1 beyond `maximum` and 0 elsewhere."""
    safe = maximum - cache
    if length <= safe:
        return 0.0
    return -1.0 if length >= maximum else (safe - length) / cache


def cosine(length: int, maximum: int, start: float, end: float) -> float:
    """CosFn, from `start` at 0 to `end` at `maximum`, for a `length` between them."""
    share = (1.0 + math.cos(math.pi * length / maximum)) / 2.0
    return min(max(end + (start - end) * share, min(start, end)), max(start, end))


def ngrams(words: list[str], n: int) -> tuple[int, int]:
    """How many different n-grams `words` has, and how many in all."""
    total = max(len(words) - n + 1, 0)
    return len({tuple(words[place : place + n]) for place in range(total)}), total
