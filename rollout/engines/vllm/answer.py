"""One turn as it grows: the tokens so far, and which version sampled each of them.

A turn may be sampled in several attempts: on one replica until it dies or is paused, then on from there. Within an
attempt the version is the one it began with, unless the server says otherwise (`kv: keep`, where weights change under a
running request; the server tells where at the end of the request only). Invariants:
- what is in `ids` is kept: a token that nobody can say the version of is cut before anybody sees it;
- the seams tile the tokens; an attempt that goes on elsewhere begins a span of its own, one that goes on after a pause
  only where the version changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quintain.arrays import Ints, as_floats, as_ints
from quintain.rollout.engines.base import Completion, Sampling
from quintain.rollout.engines.contract import spans_between
from quintain.rollout.engines.vllm.dialect import Chunk
from quintain.trajectory import Finish


class PartialCompletion:
    """The answer to one request, `limit` tokens at most."""

    def __init__(self, prompt: Ints, sampling: Sampling, limit: int) -> None:
        self.prompt, self.sampling, self.limit = prompt, sampling, limit
        self.ids: list[int] = []
        self._logprobs: list[float] = []
        self._seams: list[tuple[int, int]] = []  # (version, first token)
        self._certain: int | None = None  # tokens of this attempt that are surely of its first version, once paused
        self._start = self._before = 0  # tokens and seams when this attempt began
        self._moved = self._ended = False

    @property
    def so_far(self) -> list[int]:
        """The prompt and the tokens so far: what an attempt goes on from."""
        return [*map(int, self.prompt), *self.ids]

    @property
    def left(self) -> int:
        """How many more tokens it may get."""
        return self.limit - len(self.ids)

    @property
    def finish(self) -> Finish | None:
        """How it ended, None while it has not."""
        if self._ended:
            return Finish.STOP
        return None if self.left > 0 else Finish.LENGTH

    @property
    def said_stop(self) -> bool:
        """Whether it ended at a stop string, of which the server knows nothing."""
        return self._ended and self.ids[-1] not in self.sampling.stop_ids

    def begin(self, version: int, *, moved: bool) -> None:
        """An attempt begins; `moved`: because the one before was lost with its replica."""
        self._start, self._certain, self._moved = len(self.ids), None, moved
        if self._seams and self._seams[-1][1] == self._start:
            self._seams.pop()
        self._before = len(self._seams)
        self._seam(version, self._start, always=moved)

    def add(self, chunk: Chunk) -> int:
        """More tokens of this attempt; how many were taken. Those past a stop or the limit are not."""
        before = len(self.ids)
        for token, logprob in zip(chunk.ids, chunk.logprobs, strict=True):
            if self.finish is not None:
                break
            self.ids.append(token)
            self._logprobs.append(logprob)
            self._ended = self.sampling.ends(self.ids)
        return len(self.ids) - before

    def mark(self) -> None:
        """Sampling has been paused under this attempt (`kv: keep`): what it has is surely of its first version."""
        if self._certain is None:
            self._certain = len(self.ids)

    def interrupt(self) -> int:
        """The attempt ended without the server's word on versions: how many tokens had to be given up."""
        kept = len(self.ids) if self._certain is None else self._certain
        lost = len(self.ids) - kept
        del self.ids[kept:], self._logprobs[kept:]
        self._ended = self._ended and not lost
        return lost

    def settle(self, told: Sequence[tuple[str, int]], version_of: Callable[[str], int | None]) -> bool:
        """The server's word at the end of an attempt that was paused: (label, first token of the attempt).

        False where it does not fit, and then the attempt must be interrupted.
        """
        if self._certain is None:
            return True
        seams = [(version_of(label), self._start + start) for label, start in told]
        if not seams or seams[0][1] != self._start:
            return False
        del self._seams[self._before :]
        for version, at in seams:
            if version is None:
                return False
            if at < len(self.ids):
                self._seam(version, at, always=self._moved and at == self._start)
        return True

    def completion(self) -> Completion:
        """The whole turn; only where it has finished."""
        assert self.finish is not None
        spans = spans_between(self._seams, len(self.ids))
        return Completion(as_ints(self.ids), as_floats(self._logprobs), self.finish, spans)

    def _seam(self, version: int, at: int, *, always: bool) -> None:
        if always or not self._seams or self._seams[-1][0] != version:
            self._seams.append((version, at))
