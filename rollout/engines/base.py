"""The engine: token ids in, token ids out, and the weights it samples with.

Invariants every engine keeps:
- `generate` never re-tokenises: the output ids are what was sampled, the log-probabilities are of the distribution
  they were sampled from (temperature included), and the version spans tile the output.
- A sample depends on its seed and its logits alone, never on what else was in the batch.
- `load` swaps the weights and the version together; between `pause` and `resume` no token is sampled.
- An engine that cannot answer raises `FailureError`; it never answers with made-up tokens.

An engine of one's own is a factory that `rollout.engine` names as `module:factory` or `file.py:factory`: a function
of the `ExperimentConfig` that gives an `Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from quintain.arrays import Floats, Ints
from quintain.trajectory import Finish, VersionSpan


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn. The defaults sample from the model's own distribution, without bias.

    temperature 0 is greedy, and then log-probabilities are of temperature 1. `stop_ids` end the turn and are kept as
    its last token, and so is the token after which `said` holds of all tokens so far: that they say a stop string.
    `seed` makes the sample a function of the logits; two requests with one seed draw alike.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    said: Callable[[Sequence[int]], bool] | None = None

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of `tokens`, all of the turn so far, ends it; asked after every token."""
        return tokens[-1] in self.stop_ids or (self.said is not None and self.said(tokens))


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sample: output_ids [T] int32, logprobs [T] float32, spans that tile 0..T."""

    output_ids: Ints
    logprobs: Floats
    finish: Finish
    versions: tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """New weights to load: a folder with `model.safetensors` (names as in the model's state dict), and its version."""

    path: Path
    version: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine says of itself: counters since its start, and how much it holds now."""

    version: int
    running: int
    waiting: int
    prompt_tokens: int
    output_tokens: int
    busy_s: float  # wall time spent computing
    kv_usage: float | None = None  # share of the KV cache in use, 0..1; None: this engine has none to report
    preemptions: int = 0  # requests put back because the KV cache was full
    prefix_hits: int = 0  # prompt tokens found in the prefix cache ...
    prefix_queries: int = 0  # ... of those looked up


@runtime_checkable
class Engine(Protocol):
    """What samples. Implementations: `vllm`, `transformers` (embedded), and a fake one in the tests."""

    @property
    def max_length(self) -> int:
        """Most tokens, prompt and output together, that one request may hold."""

    async def generate(self, prompt_ids: Ints, sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn. `session` names the episode, for prefix caching and for ordering within a batch."""

    async def score(self, rows: Sequence[Ints]) -> list[Floats]:
        """Log-probabilities at temperature 1 of each row's tokens given those before: [L] -> [L - 1]."""

    async def pause(self) -> None:
        """Stop sampling at a token boundary; requests in flight are kept."""

    async def prepare(self, weights: Weights) -> None:
        """Read `weights` beside those in use, while sampling goes on, so that `load` of the same need only swap them.

        It may be left out. Raises as `load` does; an engine that cannot prepare does nothing.
        """

    async def load(self, weights: Weights) -> None:
        """Swap the weights in. Requests in flight go on under the new version with recomputed caches."""

    async def resume(self) -> None:
        """Go on sampling."""

    def kick(self) -> None:
        """The episodes that may sample next have changed: an engine that gathers requests may look again."""

    def stats(self) -> EngineStats:
        """Counters for metrics and benchmarks."""

    async def close(self) -> None:
        """Free everything; requests in flight end with a `cancelled` failure."""
