"""The data model: round trips, and what its types refuse."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.codec import from_builtins, from_json, pack, to_builtins, to_json, unpack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage, failure_from
from quintain.messages import FunctionCall, Message, ToolCall
from quintain.task import EndlessTasks, Task, TaskOrigin
from quintain.trajectory import (
    Ending,
    Finish,
    Group,
    Trajectory,
    Turn,
    VersionSpan,
    extends,
    to_segments,
)
from quintain.verdict import Outcome, Verdict

TEXT = st.text(max_size=12)
IDS = st.integers(0, 2**31 - 1)
LOGPROB = st.floats(-50, 0, width=32)
FINITE = st.floats(-1e6, 1e6)

messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.none() | TEXT,
    tool_calls=st.lists(st.builds(ToolCall, TEXT, st.builds(FunctionCall, TEXT, TEXT)), max_size=2).map(tuple),
    tool_call_id=st.none() | TEXT,
)
failures = st.builds(Failure, st.sampled_from(FailureKind), st.sampled_from(Stage), TEXT, st.booleans())


@st.composite
def spans(draw: st.DrawFn, tokens: int) -> tuple[VersionSpan, ...]:
    cuts = sorted(draw(st.sets(st.integers(1, max(1, tokens - 1)), max_size=3))) if tokens > 1 else []
    edges = [0, *cuts, tokens] if tokens else [0]
    return tuple(VersionSpan(v, a, b) for v, (a, b) in enumerate(pairwise(edges)))


@st.composite
def turns(draw: st.DrawFn, before: list[int] | None = None) -> Turn:
    prompt = (before or []) + draw(st.lists(IDS, min_size=0 if before else 1, max_size=6))
    output = draw(st.lists(IDS, max_size=6))
    return Turn(
        prompt_ids=prompt,
        output_ids=output,
        logprobs=draw(st.lists(LOGPROB, min_size=len(output), max_size=len(output))),
        finish=draw(st.sampled_from(Finish)),
        versions=draw(spans(len(output))),
        message=draw(messages),
        observation=tuple(draw(st.lists(messages, max_size=2))),
        reward=draw(FINITE),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    made: list[Turn] = []
    for _ in range(draw(st.integers(0, 4))):
        chained = bool(made) and draw(st.booleans())
        made.append(draw(turns(before=made[-1].ids.tolist() if chained else None)))
    failure = draw(st.none() | failures)
    return Trajectory(
        id=draw(TEXT),
        group=draw(TEXT),
        task=draw(TEXT),
        index=draw(st.integers(0, 99)),
        member=0,
        seed=1,
        turns=tuple(made),
        ending=Ending.FAILED if failure else draw(st.sampled_from([Ending.TERMINATED, Ending.TRUNCATED])),
        reward=None if failure else draw(FINITE),
        failure=failure,
        rewards=draw(st.dictionaries(TEXT, FINITE, max_size=2)),
    )


@given(trajectories())
def test_a_trajectory_survives_json_and_msgpack(trajectory: Trajectory) -> None:
    assert to_json(from_json(to_json(trajectory), Trajectory)) == to_json(trajectory)
    assert pack(unpack(pack(trajectory), Trajectory)) == pack(trajectory)
    again: Trajectory = unpack(pack(trajectory), Trajectory)
    for turn, copy in zip(trajectory.turns, again.turns, strict=True):
        assert copy.output_ids.dtype == np.int32
        assert copy.logprobs.dtype == np.float32
        assert np.array_equal(turn.prompt_ids, copy.prompt_ids)
        assert np.array_equal(turn.logprobs, copy.logprobs)
        assert turn.message == copy.message


@given(messages, failures)
def test_messages_and_failures_are_equal_after_a_round_trip(message: Message, failure: Failure) -> None:
    assert from_builtins(to_builtins(message), Message) == message
    assert unpack(pack(message), Message) == message
    assert from_json(to_json(failure), Failure) == failure
    assert pickle.loads(pickle.dumps(FailureError(failure))).failure == failure


@given(trajectories())
def test_every_sampled_token_is_in_exactly_one_segment(trajectory: Trajectory) -> None:
    segments = to_segments(trajectory)
    sampled = np.concatenate([segment.ids[segment.mask] for segment in segments] or [np.zeros(0, np.int32)])
    outputs = np.concatenate([turn.output_ids for turn in trajectory.turns] or [np.zeros(0, np.int32)])
    assert np.array_equal(sampled, outputs)
    logprobs = np.concatenate([segment.logprobs[segment.mask] for segment in segments] or [np.zeros(0)])
    assert np.array_equal(logprobs, np.concatenate([t.logprobs for t in trajectory.turns] or [np.zeros(0)]))
    versions = np.concatenate([segment.versions[segment.mask] for segment in segments] or [np.zeros(0)])
    expected = [s.version for t in trajectory.turns for s in t.versions for _ in range(s.start, s.end)]
    assert versions.tolist() == expected
    for segment in segments:
        assert (segment.versions[~segment.mask] == -1).all()
        assert segment.mask.any()
        assert segment.mask[-1]


@given(trajectories())
def test_a_segment_is_a_maximal_chain_of_turns(trajectory: Trajectory) -> None:
    breaks = sum(not extends(after.prompt_ids, before.ids) for before, after in pairwise(trajectory.turns))
    sampled_turns = [turn for turn in trajectory.turns if len(turn.output_ids)]
    assert len(to_segments(trajectory)) <= (breaks + 1 if sampled_turns else 0)
    for segment in to_segments(trajectory):
        assert any(extends(segment.ids, turn.ids) for turn in trajectory.turns)


def turn(**changes: Any) -> Turn:
    fields: dict[str, Any] = {
        "prompt_ids": [1, 2],
        "output_ids": [3],
        "logprobs": [-0.5],
        "finish": Finish.STOP,
        "versions": (VersionSpan(0, 0, 1),),
        "message": Message("assistant", "x"),
    }
    return Turn(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprobs": []}, "one log-probability per sampled token"),
        ({"versions": ()}, "tile"),
        ({"versions": (VersionSpan(0, 0, 2),)}, "tile"),
        ({"versions": (VersionSpan(0, 0, 0), VersionSpan(0, 0, 1))}, "tile"),
        ({"reward": float("nan")}, "finite"),
        ({"reward": float("inf")}, "finite"),
        ({"prompt_ids": [1.5]}, "flat list of numbers"),
        ({"prompt_ids": [[1]]}, "flat list of numbers"),
        ({"prompt_ids": [2**40]}, "32-bit"),
    ],
)
def test_a_malformed_turn_is_refused_with_the_reason(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        turn(**changes)


def test_arrays_of_the_data_model_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        turn().output_ids[0] = 9


def test_a_trajectory_has_a_reward_or_a_failure() -> None:
    failure = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "late")
    for reward, broken, ending in ((None, None, Ending.TERMINATED), (1.0, failure, Ending.FAILED)):
        with pytest.raises(ValueError, match="reward or a failure"):
            Trajectory("t", "g", "k", 0, 0, 0, (), ending, reward, broken)
    with pytest.raises(ValueError, match="ends in 'failed'"):
        Trajectory("t", "g", "k", 0, 0, 0, (), Ending.TERMINATED, None, failure)


def test_a_verdict_has_a_score_in_the_unit_interval_or_a_failure() -> None:
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            Verdict(score, Outcome.CORRECT)
    with pytest.raises(ValueError, match="exactly one"):
        Verdict(None, Outcome.WRONG)
    assert Verdict.scored(0.5).outcome is Outcome.PARTIAL
    assert Verdict.failed(Outcome.TIMEOUT, "5 s passed").failure is not None


def test_a_wrong_field_is_named_with_what_came() -> None:
    good = to_json(Group("g", 0, (Trajectory("t", "g", "k", 0, 0, 0, (turn(),), Ending.TERMINATED, 1.0),)))
    with pytest.raises(QuintainError, match=r"trajectories\.0\.turns\.0\.output_ids: .*got \[3\.5\]"):
        from_json(good.replace('"output_ids":[3]', '"output_ids":[3.5]'), Group)


@dataclass(frozen=True)
class Scalars:
    whole: int = 0
    number: float = 0.0
    truth: bool = False
    text: str = ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("whole", value) for value in (True, 1.0, "1", None)),
        *(("number", value) for value in (True, "1", None)),
        *(("truth", value) for value in (1, 0.0, "true", None)),
        *(("text", value) for value in (True, 1, 1.0, None)),
    ],
)
def test_a_value_is_never_taken_for_one_of_another_type(field: str, value: Any) -> None:
    data = {field: value}
    for read in (
        lambda: from_builtins(data, Scalars),
        lambda: from_json(json.dumps(data), Scalars),
        lambda: unpack(msgpack.packb(data), Scalars),
    ):
        with pytest.raises(QuintainError, match=rf"^{field}: Input should be a valid"):
            read()


def test_a_whole_number_is_a_number() -> None:
    assert from_builtins({"number": 3}, Scalars) == from_json('{"number": 3}', Scalars) == Scalars(number=3.0)


@pytest.mark.parametrize("data", [b"", b"not msgpack", b"\xc1", b"\xd9\xff"])
def test_bytes_that_are_no_msgpack_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(QuintainError, match="expected msgpack"):
        unpack(data, Message)


def test_an_exception_becomes_one_line_without_a_stack() -> None:
    failure = failure_from(RuntimeError("first\nsecond"), Stage.STEP)
    assert (failure.kind, failure.stage) == (FailureKind.CRASHED, Stage.STEP)
    assert failure.message == "RuntimeError: first second"
    assert failure_from(TimeoutError(), Stage.RESET).kind is FailureKind.TIMEOUT
    assert failure_from(MemoryError(), Stage.RESET).kind is FailureKind.RESOURCE


def test_a_public_task_has_no_reference() -> None:
    task = Task("a", (Message("user", "?"),), reference="secret").public(TaskOrigin("train", 3))
    assert "secret" not in to_json(task)
    assert task.origin == TaskOrigin("train", 3)


def test_an_endless_source_has_every_index_and_no_negative_one() -> None:
    source = EndlessTasks(lambda index: Task(str(index)))
    assert source[10**9].id == "1000000000"
    with pytest.raises(IndexError, match="give one >= 0"):
        source[-1]
