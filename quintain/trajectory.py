"""Trajectories of exact tokens, and the training rows they become.

Invariants, checked where the objects are made:
- a turn's `output_ids`, `logprobs` and version spans cover the same tokens, in order and without gaps;
- a token is stored once: a turn holds what is new, and in a trajectory it extends the last turn of its agent unless it
  says why not (`fork`), and then it holds its whole prompt;
- arrays are one-dimensional, of the declared type, and read-only;
- a trajectory has a finite reward or a failure, never both and never neither.

Shapes: P prompt tokens of a turn, N of them new, T sampled tokens of a turn, L tokens of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator

from quintain.arrays import Floats, Ints, as_floats, as_ints
from quintain.codec import pack, unpack
from quintain.failure import Failure
from quintain.messages import Message
from quintain.task import POLICY, plain


class Finish(StrEnum):
    """Why the engine stopped sampling."""

    STOP = "stop"  # an end-of-turn token was sampled; it is the last of the output
    LENGTH = "length"  # the token limit came first


class Ending(StrEnum):
    """How an episode ended."""

    TERMINATED = "terminated"  # the environment said so
    TRUNCATED = "truncated"  # a limit of turns or tokens came first
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens `start` to `end` (exclusive) of a turn's output were sampled by policy `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One policy sample and what the environment answered.

    prompt_ids [P] int32 and output_ids [T] int32 are exactly what the engine was given and gave; logprobs [T]
    float32 are of the distribution sampled from (temperature included). Stored of the prompt is what is new, new_ids
    [N]: what follows the tokens of the turn `before`, all of it where there is none. `message` is the sample as the
    environment saw it; `observation` is what it answered, to the seat whose turn comes next. `agent` is the seat that
    sampled it: several may play one episode. `before` is in no file and on no wire: a trajectory knows it.
    """

    new_ids: Ints
    output_ids: Ints
    logprobs: Floats
    finish: Finish
    versions: tuple[VersionSpan, ...]
    message: Message
    observation: tuple[Message, ...] = ()
    reward: float = 0.0
    fork: str | None = None  # why this turn's prompt does not extend the tokens before it
    generate_s: float = 0.0
    env_s: float = 0.0
    agent: str = POLICY
    before: Annotated[Turn | None, PlainValidator(lambda _: None), Field(exclude=True)] = field(
        default=None, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "new_ids", as_ints(self.new_ids))
        object.__setattr__(self, "output_ids", as_ints(self.output_ids))
        object.__setattr__(self, "logprobs", as_floats(self.logprobs))
        n = len(self.output_ids)
        if len(self.logprobs) != n:
            raise ValueError(f"a turn needs one log-probability per sampled token: {n} tokens, {len(self.logprobs)}")
        check_spans(self.versions, n)
        if not math.isfinite(self.reward):
            raise ValueError(f"a turn's reward must be finite, not {self.reward!r}")

    @property
    def prompt_ids(self) -> Ints:
        """What the engine was given [P]."""
        return self._joined(self.new_ids)

    @property
    def ids(self) -> Ints:
        """All tokens so far [P + T]."""
        return self._joined(self.output_ids, self.new_ids)

    def _joined(self, *last_first: Ints) -> Ints:
        """The tokens of the turns before, then those given."""
        parts, turn = list(last_first), self.before
        while turn is not None:
            parts += (turn.output_ids, turn.new_ids)
            turn = turn.before
        return as_ints(np.concatenate(parts[::-1]))


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """The record of one episode.

    `reward` is the sum over turns, None where the episode failed; `rewards` names its parts where the environment
    does (an episode's `info["rewards"]`), and what each seat was paid where there are several. `index` is the task's
    place in its source, `member` the place in the group; `environment` is the run's name for where it was played, and
    `task_id` the environment's own for the task. `info["tools"]` names the tools on offer, where there were any.
    """

    id: str
    group: str
    task: str
    index: int
    member: int
    seed: int
    turns: tuple[Turn, ...]
    ending: Ending
    reward: float | None
    failure: Failure | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    prompt: tuple[Message, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1
    elapsed_s: float = 0.0
    environment: str = ""
    task_id: str | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.failure is None):
            raise ValueError("a trajectory has a reward or a failure: give exactly one of them")
        if (self.failure is not None) != (self.ending is Ending.FAILED):
            raise ValueError(f"a trajectory that failed ends in 'failed' and no other does, not {self.ending!r}")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a trajectory's reward must be finite, not {self.reward!r}")
        object.__setattr__(self, "info", plain(self.info, "a trajectory's info"))
        object.__setattr__(self, "turns", tuple(_linked(self.turns)))

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (pack(self), Trajectory)  # turn by turn it would be as deep as the trajectory is long

    @property
    def output_tokens(self) -> int:
        """Tokens the policy sampled in all turns."""
        return sum(len(turn.output_ids) for turn in self.turns)

    @property
    def truncated(self) -> bool:
        """Whether a limit cut the last turn or the episode short."""
        cut = bool(self.turns) and self.turns[-1].finish is Finish.LENGTH
        return cut or self.ending is Ending.TRUNCATED


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The G trajectories of one task, failures included."""

    id: str
    index: int
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A training row: a maximal chain of turns in which each extends the one before it.

    ids [L] int32; mask [L] bool, true where the policy sampled the token; logprobs [L] float32, zero where it did
    not; versions [L] int32, -1 where it did not; rewards [L] float32, a turn's reward at its last sampled token (of a
    turn that sampled none: at that of the turn before it, or else of the next one). The first token is never sampled.
    """

    ids: Ints
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    logprobs: Floats
    versions: Ints
    rewards: Floats


def check_spans(spans: Sequence[VersionSpan], tokens: int) -> None:
    """Raise ValueError unless `spans` tile 0..tokens in order without gaps or empty spans."""
    at = 0
    for span in spans:
        if span.start != at or span.end <= span.start:
            raise ValueError(f"version spans must tile the {tokens} sampled tokens in order: got {list(spans)}")
        at = span.end
    if at != tokens:
        raise ValueError(f"version spans must tile the {tokens} sampled tokens in order: got {list(spans)}")


def _linked(turns: Iterable[Turn]) -> Iterator[Turn]:
    last: dict[str, Turn] = {}
    for turn in turns:
        before = last.get(turn.agent) if turn.fork is None else None
        last[turn.agent] = turn if turn.before is before else replace(turn, before=before)
        yield last[turn.agent]


def by_seat(trajectory: Trajectory) -> dict[str, Trajectory]:
    """What each seat played, as a trajectory whose reward is what its turns were paid; a single seat's is the whole.

    A failure is nobody's own, so a failed trajectory stays whole.
    """
    agents = dict.fromkeys(turn.agent for turn in trajectory.turns)
    if len(agents) < 2 or trajectory.failure is not None:
        return {next(iter(agents), POLICY): trajectory}
    turns = {agent: tuple(turn for turn in trajectory.turns if turn.agent == agent) for agent in agents}
    return {
        agent: replace(trajectory, turns=own, reward=math.fsum(turn.reward for turn in own), rewards={})
        for agent, own in turns.items()
    }


def extends(prompt: Ints, before: Ints) -> bool:
    """Whether `prompt` starts, exactly, with the tokens `before`."""
    return len(prompt) >= len(before) and bool(np.array_equal(prompt[: len(before)], before))


def versions_of(trajectory: Trajectory) -> set[int]:
    """The policy versions that sampled its tokens."""
    return {span.version for turn in trajectory.turns for span in turn.versions}


def to_segments(trajectory: Trajectory) -> list[Segment]:
    """The training rows of `trajectory`, in order. Every sampled token is in exactly one of them.

    A turn without sampled tokens adds nothing to train on; it still carries the chain forward.
    """
    chains: list[list[Turn]] = []
    at: dict[str, list[Turn]] = {}
    for turn in trajectory.turns:
        if turn.before is None:
            at[turn.agent] = []
            chains.append(at[turn.agent])
        at[turn.agent].append(turn)
    return [_join(chain) for chain in chains if any(len(turn.output_ids) for turn in chain)]


def _join(chain: Sequence[Turn]) -> Segment:
    last = max(i for i, turn in enumerate(chain) if len(turn.output_ids))
    ids = np.concatenate([part for turn in chain[: last + 1] for part in (turn.new_ids, turn.output_ids)])
    mask = np.zeros(len(ids), dtype=np.bool_)
    logprobs = np.zeros(len(ids), dtype=np.float32)
    versions = np.full(len(ids), -1, dtype=np.int32)
    rewards = np.zeros(len(ids), dtype=np.float64)
    stop, due, sampled = 0, 0.0, -1
    for turn in chain[: last + 1]:
        start = stop + len(turn.new_ids)
        stop = start + len(turn.output_ids)
        mask[start:stop] = True
        logprobs[start:stop] = turn.logprobs
        for span in turn.versions:
            versions[start + span.start : start + span.end] = span.version
        due += turn.reward
        sampled = stop - 1 if stop > start else sampled
        if sampled >= 0:
            rewards[sampled] += due
            due = 0.0
    rewards[sampled] += sum(turn.reward for turn in chain[last + 1 :])
    mask.setflags(write=False)
    return Segment(as_ints(ids), mask, as_floats(logprobs), as_ints(versions), as_floats(rewards))
