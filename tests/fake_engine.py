"""The fake engine: an engine's whole behaviour without a network, for tests of everything above it. Its language model
is a few lines: the next token depends on the token before it and on the weights.

It keeps every invariant of `base.py`, unless told to break one: `fail` makes calls crash or hang, `stale` makes
`load` lie, which is what a canary is for. Time is what `sleep` and `clock` say, so a test can run on a virtual one.
The model's distribution is a proper one and a pure function of the weights' bytes, so a test can say what the
log-probabilities under given weights are without asking the engine: `FakeModel.of(folder)` is the oracle.

Whole runs name `of_run` in `rollout.engine`. No torch is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from quintain.arrays import Floats, Ints, as_floats, as_ints
from quintain.config import ExperimentConfig
from quintain.failure import FailureError, FailureKind, Stage, failure_from
from quintain.rollout.engines.base import Completion, EngineStats, Sampling, Weights
from quintain.rollout.engines.contract import check_request, check_rows, spans_between
from quintain.trajectory import Finish

Policy = Callable[[Ints, Sampling], Sequence[int]]
"""(prompt, sampling) -> the token ids to answer with."""

Fail = Callable[[int, int], Awaitable[None]]
"""(call, token) -> None, awaited before each token; `call` counts generate calls from 1, `token` from 0. Raise to
crash the call, wait to make it hang."""

_LONGEST_ANSWER = 16
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


def crash_on(call: int, token: int = 0, kind: FailureKind = FailureKind.CRASHED) -> Fail:
    """Crash the `call`-th generate before its `token`-th token."""

    async def fail(at_call: int, at_token: int) -> None:
        if (at_call, at_token) == (call, token):
            raise FailureError.of(kind, Stage.GENERATE, f"call {call} was told to crash at token {token}")

    return fail


def hang_on(call: int, until: asyncio.Event, token: int = 0) -> Fail:
    """Make the `call`-th generate wait for `until` before its `token`-th token."""

    async def fail(at_call: int, at_token: int) -> None:
        if (at_call, at_token) == (call, token):
            await until.wait()

    return fail


class FakeEngine:
    """Answers with what `policy` says; by default with up to 15 seeded tokens of a `FakeModel` and a stop id.

    An answer ends at its first stop id or at the limit, whichever is first. One that reaches neither gets the first
    of the stop ids appended; without any it ends as if at the limit. Log-probabilities are the model's, whoever
    chose the tokens. A prompt takes `prompt_token_s` per token, an answer `token_s` per token; `capacity` calls run
    at once and the others wait.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        words: int = WORDS,
        max_length: int = 4096,
        capacity: int = 64,
        token_s: float = 0.0,
        prompt_token_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        fail: Fail | None = None,
        stale: bool = False,
        version: int = 0,
    ) -> None:
        self.model = FakeModel(words=words)
        self.calls = 0
        self._policy = policy
        self._max_length = max_length
        self._token_s, self._prompt_token_s = token_s, prompt_token_s
        self._sleep, self._clock = sleep, clock
        self._fail = fail
        self._stale = stale
        self._version = version
        self._room = asyncio.Semaphore(capacity)
        self._going = asyncio.Event()
        self._going.set()
        self._closed = False
        self._tasks: set[asyncio.Task[Completion]] = set()
        self._running = 0
        self._prompt_tokens = self._output_tokens = 0
        self._busy_since = self._busy_s = 0.0

    @property
    def max_length(self) -> int:
        """Most tokens, prompt and output together, that one request may hold."""
        return self._max_length

    async def generate(self, prompt_ids: Ints, sampling: Sampling, *, session: str) -> Completion:
        """Answer one turn; raises FailureError as the embedded engine does, or as `fail` says."""
        prompt = as_ints(prompt_ids)
        limit = check_request(prompt, sampling, max_length=self._max_length, words=self.model.words)
        self._refuse_if_closed()
        self.calls += 1
        task = asyncio.ensure_future(self._answer(prompt, sampling, limit, self.calls))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                self._refuse_if_closed()
            raise

    async def score(self, rows: Sequence[Ints]) -> list[Floats]:
        """Log-probabilities at temperature 1 of each row's tokens given those before: [L] -> [L - 1]."""
        self._refuse_if_closed()
        checked = [as_ints(row) for row in rows]
        check_rows(checked, max_length=self._max_length, words=self.model.words)
        return [self.model.score(row) for row in checked]

    async def pause(self) -> None:
        """Stop at a token boundary; requests in flight are kept."""
        self._refuse_if_closed()
        self._going.clear()

    async def resume(self) -> None:
        """Go on."""
        self._refuse_if_closed()
        self._going.set()

    async def prepare(self, weights: Weights) -> None:
        """Nothing: loading takes no time."""

    async def load(self, weights: Weights) -> None:
        """Take the weights' bytes and their version together; a `stale` engine takes the version alone."""
        self._refuse_if_closed()
        try:
            model = FakeModel.of(weights.path, self.model.words)
        except OSError as error:
            message = f"there are no weights at {weights.path}: {error.strerror}"
            raise FailureError.of(FailureKind.REJECTED, Stage.PUBLISH, message) from error
        if not self._stale:
            self.model = model
        self._version = weights.version

    def kick(self) -> None:
        """Nothing: the fake engine never waits for a cohort."""

    def stats(self) -> EngineStats:
        """Counters since the start."""
        return EngineStats(
            version=self._version,
            running=self._running,
            waiting=len(self._tasks) - self._running,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            busy_s=self._busy_s + (self._clock() - self._busy_since if self._running else 0.0),
        )

    async def close(self) -> None:
        """End every request in flight with a `cancelled` failure. May be repeated."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, prompt: Ints, sampling: Sampling, limit: int, call: int) -> Completion:
        async with self._room:
            self._busy_since = self._busy_since if self._running else self._clock()
            self._running += 1
            try:
                return await self._speak(prompt, sampling, limit, call)
            except Exception as error:
                raise FailureError(failure_from(error, Stage.GENERATE)) from error
            finally:
                self._running -= 1
                if not self._running:
                    self._busy_s += self._clock() - self._busy_since

    async def _speak(self, prompt: Ints, sampling: Sampling, limit: int, call: int) -> Completion:
        await self._sleep(self._prompt_token_s * len(prompt))
        self._prompt_tokens += len(prompt)
        tokens = self._tokens(prompt, sampling)
        ids = [int(prompt[-1])]  # the last token of the prompt, then the answer
        logprobs: list[float] = []
        seams: list[tuple[int, int]] = []
        finish = Finish.LENGTH
        while len(logprobs) < limit and finish is not Finish.STOP:
            if self._fail is not None:
                await self._fail(call, len(logprobs))
            await self._sleep(self._token_s)
            await self._going.wait()
            token = next(tokens, None)
            if token is None:
                break
            if not seams or seams[-1][0] != self._version:
                seams.append((self._version, len(logprobs)))
            logprobs.append(float(self.model.logprobs(ids[-1], sampling.temperature)[token]))
            ids.append(token)
            self._output_tokens += 1
            finish = Finish.STOP if sampling.ends(ids[1:]) else Finish.LENGTH
        answer = as_ints(np.array(ids[1:], dtype=np.int32))
        return Completion(answer, as_floats(logprobs), finish, spans_between(seams, len(logprobs)))

    def _tokens(self, prompt: Ints, sampling: Sampling) -> Iterator[int]:
        """What there is to say, chosen when it is said, so that it follows the weights of that moment."""
        if self._policy is not None:
            yield from map(int, self._policy(prompt, sampling))
        else:
            generator = np.random.default_rng([sampling.seed % 2**64, 1])
            token = int(prompt[-1])
            for _ in range(int(generator.integers(1, _LONGEST_ANSWER))):
                yield (token := self.model.sample(token, sampling.temperature, generator))
        yield from sampling.stop_ids[:1]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise FailureError.of(FailureKind.CANCELLED, Stage.GENERATE, "the engine was closed")


def of_run(config: ExperimentConfig) -> FakeEngine:
    """The engine of a whole run: as many words and positions as the run's model."""
    settings = json.loads((Path(config.model.path) / "config.json").read_text())
    return FakeEngine(words=settings["vocab_size"], max_length=settings["max_position_embeddings"])
