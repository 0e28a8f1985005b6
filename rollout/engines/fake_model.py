"""A language model of a few lines, for tests: the next token depends on the token before it and on the weights.

Invariant: the distribution is a proper one and a pure function of the weights' bytes, so a test can say what the
log-probabilities under given weights are without asking the engine. `FakeModel.of(folder)` is the oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from quintain.codec import Floats, Ints, as_floats

WEIGHTS_FILE = "model.safetensors"
WORDS = 256


class FakeModel:
    """Next-token distributions over `words` tokens that follow from `weights`, any bytes at all."""

    def __init__(self, weights: bytes = b"", words: int = WORDS) -> None:
        self.words = words
        self._weights = hashlib.sha256(weights).digest()
        self._rows: dict[tuple[int, float], np.ndarray] = {}

    @classmethod
    def of(cls, folder: Path, words: int = WORDS) -> FakeModel:
        """The model of the published weights in `folder`; raises OSError if there are none."""
        return cls((Path(folder) / WEIGHTS_FILE).read_bytes(), words)

    def logprobs(self, before: int, temperature: float = 1.0) -> np.ndarray:
        """Log-probabilities [words] of the token after `before`; temperature 0 is reported at 1."""
        heat = temperature or 1.0
        if (before, heat) not in self._rows:
            seed = int.from_bytes(self._weights[:8], "little")
            logits = np.random.Generator(np.random.Philox(key=[seed, before])).normal(size=self.words) * 2 / heat
            self._rows[before, heat] = logits - np.logaddexp.reduce(logits)
        return self._rows[before, heat]

    def sample(self, before: int, temperature: float, generator: np.random.Generator) -> int:
        """A token after `before`."""
        logprobs = self.logprobs(before, temperature)
        if temperature == 0:
            return int(logprobs.argmax())
        below = np.searchsorted(np.exp(logprobs).cumsum(), generator.random(), side="right")
        return min(int(below), self.words - 1)

    def score(self, ids: Ints) -> Floats:
        """Log-probabilities at temperature 1 of the tokens of `ids` [L], given those before: [L - 1]."""
        return as_floats([self.logprobs(int(a))[int(b)] for a, b in pairwise(ids)])

    def follow(self, prompt: Ints, ids: Sequence[int], temperature: float) -> Floats:
        """Log-probabilities of `ids` [T] sampled after `prompt` at `temperature`."""
        before = [int(prompt[-1]), *ids[:-1]] if len(ids) else []
        return as_floats([self.logprobs(a, temperature)[b] for a, b in zip(before, ids, strict=True)])
