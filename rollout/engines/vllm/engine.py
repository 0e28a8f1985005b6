"""The engine over vLLM: any number of replicas of an unmodified server, as one sampler.

Beside the invariants of `base.py`, but for the seeds (vLLM samples with generators of its own, so a sample is no
function of its seed):
- a request whose replica dies, hangs or is stopped goes on elsewhere from the tokens so far;
- every token's version is known: with `kv: recompute` a pause ends the requests on the servers and they go on after it
  as new ones, with everything recomputed, so none ever holds tokens of two versions; with `kv: keep` the servers keep
  them and say at their end which weights sampled what, and where a server dies before it can, the tokens in doubt are
  sampled again;
- `score` asks every replica, and replicas that do not agree are a failure: what a canary proves it proves of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quintain.arrays import Floats, Ints, as_floats, as_ints
from quintain.failure import FailureError, FailureKind, Stage, failure_from
from quintain.rollout.engines.base import Completion, EngineStats, Sampling, Weights
from quintain.rollout.engines.contract import check_request, check_rows
from quintain.rollout.engines.vllm.answer import PartialCompletion
from quintain.rollout.engines.vllm.fleet import Fleet, Member, ReplicaRequest, total_load
from quintain.rollout.engines.vllm.replica import ReplicaDown
from quintain.rollout.weights.canary import TOLERANCE

MOVES = 3
"""How many replicas in a row may fail a request before it gets another token: then it is the request that fails."""


class VLLMEngine:
    """Samples with `fleet`. `words` is the vocabulary's size; `dtype` says how far replicas may disagree.

    Make one with `start.open_vllm`. Its first call must come from the event loop that it is used in.
    """

    def __init__(self, fleet: Fleet, *, words: int, max_length: int, dtype: str) -> None:
        self._fleet, self._words, self.max_length = fleet, words, max_length
        self._agreement = 2 * TOLERANCE[dtype]
        self._tasks: set[asyncio.Task[Completion]] = set()
        self._closed = False
        self._prompt_tokens = self._output_tokens = 0
        self._busy_since = self._busy_s = 0.0
        self._open = True
        self._scoring = asyncio.Lock()

    @property
    def lost(self) -> str | None:
        """Why this engine can never sample again, though nobody closed it; None while it can."""
        return self._fleet.lost

    async def generate(self, prompt_ids: Ints, sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn. Cancelling the awaiting task frees its place at the next token.

        Raises FailureError at `generate`: `rejected`, `too_long`, `invalid` (log-probabilities that are not finite),
        `crashed` (several replicas in a row failed it), `unreachable` (no replica is left) or `cancelled`.
        """
        prompt = as_ints(prompt_ids)
        limit = check_request(prompt, sampling, max_length=self.max_length, words=self._words)
        self._begin()
        task = asyncio.ensure_future(
            self._answer(PartialCompletion(prompt, self._known_stops(sampling), limit), session)
        )
        self._busy_since = self._busy_since if self._tasks else time.monotonic()
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                self._refuse_if_closed()
            task.cancel()
            raise
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._busy_s += time.monotonic() - self._busy_since

    async def score(self, rows: Sequence[Ints]) -> list[Floats]:
        """Log-probabilities at temperature 1 of each row's tokens given those before: [L] -> [L - 1].

        A row must leave room for one token, which vLLM insists on sampling.
        """
        self._begin()
        checked = [as_ints(row) for row in rows]
        check_rows(checked, max_length=self.max_length - 1, words=self._words)
        if not self._fleet.holdings.adapters:
            return await self._score(checked, at_once=len(checked))
        async with self._scoring:
            if not self._open or not self._tasks:
                return await self._score(checked, at_once=1)
            await self.pause()
            try:
                return await self._score(checked, at_once=1)
            finally:
                await self.resume()

    async def pause(self) -> None:
        """Stop sampling at a token boundary; requests in flight are kept."""
        self._begin()
        self._open = False
        await self._fleet.pause()

    async def prepare(self, weights: Weights) -> None:
        """Nothing: a server reads weights when it is told to load them."""

    async def load(self, weights: Weights) -> None:
        """Swap the weights in, on all replicas or none. A folder with an `adapter_config.json` is a PEFT adapter.

        FailureError at `publish` where they are refused, and then the old ones are in force everywhere.
        """
        self._begin()
        if self._open:  # nobody paused: weights never change under a request that does not know of it
            await self.pause()
            try:
                await self.load(weights)
            finally:
                await self.resume()
            return
        await self._fleet.load(weights)

    async def resume(self) -> None:
        """Go on sampling."""
        self._begin()
        await self._fleet.resume()
        self._open = True

    def kick(self) -> None:
        """Nothing: vLLM never waits for a cohort."""

    def stats(self) -> EngineStats:
        """Counters since the start: tokens as they came in here, the rest as the servers told within the last second.

        Of a server that was started again, the counters go on.
        """
        load = total_load(self._fleet.members)
        waiting = min(load.waiting, len(self._tasks)) if self._open else len(self._tasks)
        return EngineStats(
            version=self._fleet.holdings.version,
            running=len(self._tasks) - waiting,
            waiting=waiting,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            busy_s=self._busy_s + (time.monotonic() - self._busy_since if self._tasks else 0.0),
            kv_usage=load.kv_usage,
            preemptions=load.preemptions,
            prefix_hits=load.prefix_hits,
            prefix_queries=load.prefix_queries,
        )

    async def close(self) -> None:
        """End every request in flight with a `cancelled` failure, and the servers that are ours. May be repeated."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fleet.close()

    async def _answer(self, answer: PartialCompletion, session: str) -> Completion:
        self._prompt_tokens += len(answer.prompt)
        moved, failed = False, 0
        while answer.finish is None:
            attempt = await self._fleet.enter(session, answer.mark)
            before = len(answer.ids)
            try:
                await self._attempt(attempt, answer, moved=moved)
                moved = False
            except ReplicaDown as error:
                self._fleet.suspect(attempt.member, str(error))
                moved = True
                failed = 0 if len(answer.ids) > before else failed + 1
                if failed >= MOVES:
                    message = f"{failed} replicas in a row failed this request, the last one: {error}"
                    raise FailureError.of(FailureKind.CRASHED, Stage.GENERATE, message) from None
            finally:
                self._fleet.leave(attempt)
        return answer.completion()

    async def _attempt(self, attempt: ReplicaRequest, answer: PartialCompletion, *, moved: bool) -> None:
        """Sample on the attempt's replica until the answer ends or sampling stops there. ReplicaDown where it died."""
        member, holdings = attempt.member, self._fleet.holdings
        answer.begin(holdings.version, moved=moved)
        whole, finish = False, None
        try:
            async with attempt.running():
                stream = member.replica.stream(
                    answer.so_far, answer.sampling, answer.left, adapter=holdings.adapter_name, salt=holdings.salt
                )
                async with contextlib.aclosing(stream):
                    async for chunk in stream:
                        member.sign()
                        self._output_tokens += answer.add(chunk)
                        if chunk.finish is not None or answer.said_stop:
                            finish = chunk.finish
                            whole = holdings.adapter is not None or answer.settle(chunk.versions, holdings.version_of)
                        if answer.said_stop:
                            break  # the server watches for no strings: leaving the stream ends its work
        except TimeoutError as error:
            if not attempt.interrupted:
                raise FailureError(failure_from(error, Stage.GENERATE)) from error
            if attempt.down is not None:
                raise ReplicaDown(attempt.down) from None
        finally:
            if not whole:
                self._output_tokens -= answer.interrupt()
        if whole and finish in ("stop", "length") and answer.finish is None:
            message = (
                f"vLLM ended an answer ({finish}) after {len(answer.ids)} of {answer.limit} tokens without a stop id:"
                " is its --max-model-len smaller than rollout.max_length?"
            )
            raise FailureError.of(FailureKind.INVALID, Stage.GENERATE, message, retryable=False)

    async def _score(self, rows: Sequence[Ints], *, at_once: int) -> list[Floats]:
        """What `score` says. With adapters on, vLLM 0.32's CPU engine dies of log-probabilities of a prompt beside any
        other request, so there rows go one by one, and alone."""
        holdings = self._fleet.holdings

        async def one(member: Member) -> list[Floats]:
            room = asyncio.Semaphore(max(1, at_once))

            async def row_of(row: Ints) -> Floats:
                if len(row) < 2:
                    return as_floats([])
                async with room:
                    return await member.replica.score(row, adapter=holdings.adapter_name, salt=holdings.salt)

            scored = await asyncio.gather(*map(row_of, rows))
            member.sign()
            return scored

        first, *others = await self._fleet.while_scoring(one)
        for other in others:
            self._refuse_disagreement(first, other)
        return first

    def _known_stops(self, sampling: Sampling) -> Sampling:
        """`sampling` without stop ids that no model of this vocabulary can say; vLLM may refuse them."""
        return replace(sampling, stop_ids=tuple(stop for stop in sampling.stop_ids if 0 <= stop < self._words))

    def _refuse_disagreement(self, first: Sequence[Floats], other: Sequence[Floats]) -> None:
        if not sum(map(len, first)):
            return
        gap = float(np.mean(np.abs(np.concatenate(first) - np.concatenate(other))))
        if not gap <= self._agreement:
            message = (
                f"the replicas do not sample with the same weights: their log-probabilities differ by {gap:.3g} nats on"
                f" average, {self._agreement:g} is allowed"
            )
            raise FailureError.of(FailureKind.INVALID, Stage.PUBLISH, message, retryable=True)

    def _begin(self) -> None:
        self._refuse_if_closed()
        self._fleet.begin()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise FailureError.of(FailureKind.CANCELLED, Stage.GENERATE, "the engine was closed")
