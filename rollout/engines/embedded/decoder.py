"""The running batch: rows join, take a token each step, and leave. Synchronous; the engine's thread owns it.

Invariants:
- a row's cache is computed once per token and never again, except after the weights changed (`restart`);
- a row that fails takes no other with it, unless they were in the same computation when it broke;
- each token carries the version of the weights it was sampled with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from quintain.arrays import Ints, as_floats, as_ints
from quintain.failure import Failure, FailureError, FailureKind, Stage, failure_from
from quintain.rollout.engines.base import Completion, Sampling
from quintain.rollout.engines.contract import spans_between
from quintain.rollout.engines.embedded.batcher import BatchLimits, Reading, admit, plan
from quintain.rollout.engines.embedded.kv import KVCache
from quintain.rollout.engines.embedded.network import Network
from quintain.rollout.engines.embedded.sampler import draw
from quintain.trajectory import Finish


@dataclass(slots=True, eq=False)
class DecodeRow:
    """One request and what has been sampled for it. `limit` is the most tokens it may get; `owner` the engine's."""

    prompt: list[int]
    sampling: Sampling
    limit: int
    owner: Any = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seams: list[tuple[int, int]] = field(default_factory=list)  # (version, first token sampled by it)
    finish: Finish | None = None

    @property
    def most_tokens(self) -> int:
        """The most positions this row may come to fill."""
        return len(self.prompt) + self.limit

    def take(self, token: int, logprob: float, version: int) -> None:
        """Append a sampled token; sets `finish` where it is the last."""
        if not self.seams or self.seams[-1][0] != version:
            self.seams.append((version, len(self.tokens)))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.sampling.ends(self.tokens):
            self.finish = Finish.STOP
        elif len(self.tokens) >= self.limit:
            self.finish = Finish.LENGTH

    def completion(self) -> Completion:
        """The finished sample."""
        assert self.finish is not None, "only a finished row has a completion"
        spans = spans_between(self.seams, len(self.tokens))
        return Completion(as_ints(np.array(self.tokens)), as_floats(np.array(self.logprobs)), self.finish, spans)


@dataclass(frozen=True, slots=True)
class EndedRows:
    """Rows that have ended: with all their tokens, or with a failure."""

    finished: tuple[DecodeRow, ...] = ()
    failed: tuple[tuple[DecodeRow, Failure], ...] = ()


class Decoder:
    """Decodes rows with `network`. `version` is stamped on what it samples."""

    def __init__(self, network: Network, limits: BatchLimits) -> None:
        self.network, self.limits = network, limits
        self.version = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._slots = KVCache()
        self._rows: list[DecodeRow] = []  # in the order of their slots
        self._again: list[DecodeRow] = []  # to be read again: their caches are of older weights

    def __len__(self) -> int:
        return len(self._rows) + len(self._again)

    @property
    def rows(self) -> list[DecodeRow]:
        """Everything running."""
        return [*self._again, *self._rows]

    def room(self, waiting: Sequence[DecodeRow]) -> int:
        """How many of `waiting` may start now."""
        return admit([row.most_tokens for row in waiting], [row.most_tokens for row in self.rows], self.limits)

    def advance(self, new: Sequence[DecodeRow]) -> EndedRows:
        """Read what is new, then sample one token for every row that was running."""
        ended: list[EndedRows] = []
        stepping = bool(self._rows)
        joining, self._again = [*self._again, *new], []
        if stepping:
            ended.append(self._guarded(self._step, list(self._rows)))
        for reading in plan([row.prompt + row.tokens for row in joining], self.limits):
            rows = [joining[index] for index in reading.rows]
            ended.append(self._guarded(lambda reading=reading, rows=rows: self._read(reading, rows), rows))
        return EndedRows(
            tuple(row for outcome in ended for row in outcome.finished),
            tuple(pair for outcome in ended for pair in outcome.failed),
        )

    def remove(self, gone: Sequence[DecodeRow]) -> None:
        """Free the slots of the rows `gone`."""
        leaving = {id(row) for row in gone}
        self._again = [row for row in self._again if id(row) not in leaving]
        slots = [index for index, row in enumerate(self._rows) if id(row) in leaving]
        if slots:
            self._rows = [self._rows[index] for index in self._slots.drop(slots)]

    def restart(self) -> None:
        """Forget all caches; every row is read again, with what it has, before it goes on."""
        self._again, self._rows = self.rows, []
        self._slots.clear()

    def score(self, rows: Sequence[Ints]) -> list[torch.Tensor]:
        """Log-probabilities at temperature 1 of the tokens of each row, given those before: [length - 1]."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        result = [torch.empty(0)] * len(rows)
        while order:
            longest = len(rows[order[-1]])
            count = max(1, min(len(order), self.limits.prefill_tokens // max(longest, 1)))
            batch, order = order[-count:], order[:-count]
            lengths = [len(rows[index]) for index in batch]
            if longest > 1:
                scored = self.network.score(_padded([rows[index].tolist() for index in batch]), lengths)
                for index, values in zip(batch, scored, strict=True):
                    result[index] = values
        return result

    def _guarded(self, work: Any, rows: list[DecodeRow]) -> EndedRows:
        """`work`'s outcome, or the failure of all of `rows` where it raises."""
        try:
            outcome: EndedRows = work()
        except Exception as error:
            self.remove(rows)
            failure = failure_of(error, Stage.GENERATE)
            return EndedRows(failed=tuple((row, failure) for row in rows))
        self.remove([*outcome.finished, *(row for row, _ in outcome.failed)])
        return outcome

    def _read(self, reading: Reading, rows: list[DecodeRow]) -> EndedRows:
        lengths = [len(prompt) for prompt in reading.prompts]
        read = self.network.prefill(_padded(reading.prompts), lengths)
        self.prompt_tokens += sum(len(row.prompt) for row in rows if not row.tokens)
        self._slots.admit(read.keys, read.values, reading.source, [lengths[index] for index in reading.source])
        self._rows += rows
        return self._sample(read.logits[list(reading.source)], rows)

    def _step(self) -> EndedRows:
        rows = list(self._rows)
        last = [row.tokens[-1] for row in rows]
        ids = torch.tensor(last + [0] * (self._slots.rows - len(last)))
        return self._sample(self.network.step(ids, self._slots)[: len(rows)], rows)

    def _sample(self, logits: torch.Tensor, rows: list[DecodeRow]) -> EndedRows:
        drawn = draw(logits, [row.sampling for row in rows], [len(row.tokens) for row in rows])
        broken: list[tuple[DecodeRow, Failure]] = []
        for row, token, logprob in zip(rows, drawn.ids, drawn.logprobs, strict=True):
            if logprob != logprob:
                broken.append((row, _NOT_FINITE))
            else:
                row.take(token, logprob, self.version)
                self.output_tokens += 1
        return EndedRows(tuple(row for row in rows if row.finish is not None), tuple(broken))


_NOT_FINITE = Failure.of(
    FailureKind.INVALID,
    Stage.GENERATE,
    "the model's logits are not finite, so nothing can be sampled from them: the weights have probably diverged",
)


def failure_of(error: BaseException, stage: Stage) -> Failure:
    """`failure_from`, with torch's ways of running out of memory told apart from other crashes."""
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    if exhausted and not isinstance(error, FailureError):
        return Failure.of(FailureKind.RESOURCE, stage, f"out of memory: {error}")
    return failure_from(error, stage)


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """`rows` as one tensor [n, S], filled up on the right with token 0."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])
