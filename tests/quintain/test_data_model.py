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
from quintain.messages import FunctionCall, Message, TextPart, ToolCall, user
from quintain.task import EndlessTasks, Task
from quintain.trajectory import (
    Ending,
    Finish,
    Group,
    Trajectory,
    Turn,
    VersionSpan,
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
    content=st.none() | TEXT | st.lists(st.builds(TextPart, TEXT), max_size=2).map(tuple),
    tool_calls=st.lists(st.builds(ToolCall, TEXT, st.builds(FunctionCall, TEXT, TEXT)), max_size=2).map(tuple),
    tool_call_id=st.none() | TEXT,
    reasoning=st.none() | TEXT,
)
failures = st.builds(Failure, st.sampled_from(FailureKind), st.sampled_from(Stage), TEXT, st.booleans())


@st.composite
def spans(draw: st.DrawFn, tokens: int) -> tuple[VersionSpan, ...]:
    cuts = sorted(draw(st.sets(st.integers(1, max(1, tokens - 1)), max_size=3))) if tokens > 1 else []
    edges = [0, *cuts, tokens] if tokens else [0]
    return tuple(VersionSpan(v, a, b) for v, (a, b) in enumerate(pairwise(edges)))


@st.composite
def turns(draw: st.DrawFn, agent: str, fork: str | None) -> Turn:
    output = draw(st.lists(IDS, max_size=6))
    return Turn(
        new_ids=draw(st.lists(IDS, min_size=1, max_size=6)),
        output_ids=output,
        logprobs=draw(st.lists(LOGPROB, min_size=len(output), max_size=len(output))),
        finish=draw(st.sampled_from(Finish)),
        versions=draw(spans(len(output))),
        message=draw(messages),
        observation=tuple(draw(st.lists(messages, max_size=2))),
        reward=draw(FINITE),
        fork=fork,
        agent=agent,
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    made: list[Turn] = []
    for _ in range(draw(st.integers(0, 4))):
        fork = draw(st.none() | TEXT) if made else None
        made.append(draw(turns(draw(st.sampled_from(["policy", "critic"])), fork)))
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
        environment=draw(TEXT),
        task_id=draw(st.none() | TEXT),
    )


def chain_of(turn: Turn) -> list[Turn]:
    """The turns whose tokens it starts with, and itself."""
    return [*(chain_of(turn.before) if turn.before else []), turn]


def in_chains(trajectory: Trajectory) -> list[Turn]:
    """The turns, chain after chain."""
    roots = [turn for turn in trajectory.turns if turn.before is None]
    return [turn for root in roots for turn in trajectory.turns if chain_of(turn)[0] is root]


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
    outputs = np.concatenate([turn.output_ids for turn in in_chains(trajectory)] or [np.zeros(0, np.int32)])
    assert np.array_equal(sampled, outputs)
    logprobs = np.concatenate([segment.logprobs[segment.mask] for segment in segments] or [np.zeros(0)])
    assert np.array_equal(logprobs, np.concatenate([t.logprobs for t in in_chains(trajectory)] or [np.zeros(0)]))
    versions = np.concatenate([segment.versions[segment.mask] for segment in segments] or [np.zeros(0)])
    expected = [s.version for t in in_chains(trajectory) for s in t.versions for _ in range(s.start, s.end)]
    assert versions.tolist() == expected
    for segment in segments:
        assert (segment.versions[~segment.mask] == -1).all()
        assert segment.mask.any()
        assert segment.mask[-1]


@given(trajectories())
def test_a_segment_is_a_maximal_chain_of_turns(trajectory: Trajectory) -> None:
    chains = {turn: (chain_of(turn)[0], len(chain_of(turn))) for turn in trajectory.turns if len(turn.output_ids)}
    tips = [turn for turn, (first, n) in chains.items() if n == max(m for f, m in chains.values() if f is first)]
    segments = to_segments(trajectory)
    assert sorted(segment.ids.tolist() for segment in segments) == sorted(turn.ids.tolist() for turn in tips)


@given(trajectories())
def test_a_turn_extends_the_last_of_its_agent_unless_it_says_why_not(trajectory: Trajectory) -> None:
    again = unpack(pack(trajectory), Trajectory)
    for made in (trajectory, again, pickle.loads(pickle.dumps(trajectory))):
        for place, turn in enumerate(made.turns):
            before = [other for other in made.turns[:place] if other.agent == turn.agent]
            known = before[-1].ids.tolist() if before and turn.fork is None else []
            assert turn.prompt_ids.tolist() == known + turn.new_ids.tolist()
            assert turn.ids.tolist() == turn.prompt_ids.tolist() + turn.output_ids.tolist()


def long_trajectory(turns: int, tokens: int, fork: str | None = None) -> Trajectory:
    spans, ids = (VersionSpan(0, 0, tokens),), np.arange(tokens)
    one = turn(new_ids=ids, output_ids=ids, logprobs=np.zeros(tokens), versions=spans, fork=fork)
    return Trajectory("t", "g", "k", 0, 0, 0, (one,) * turns, Ending.TERMINATED, 0.0)


def test_a_trajectory_is_as_large_as_its_tokens_however_many_turns_it_has() -> None:
    short, long = len(pack(long_trajectory(1, 300))), len(pack(long_trajectory(100, 300)))
    assert 95 * short < long < 100 * short, "100 turns of 300 + 300 tokens are 100 times one of them"
    assert long < 1.2 * 100 * 300 * (4 + 4 + 4), "and little more than their ids and log-probabilities"
    (segment,) = to_segments(long_trajectory(100, 300))
    assert len(segment.ids) == 100 * 600


def test_a_thousand_turns_are_no_deeper_than_one() -> None:
    made = long_trajectory(3000, 1)
    assert len(made.turns[-1].ids) == 6000
    assert len(pickle.loads(pickle.dumps(made)).turns[-1].ids) == 6000
    repr(made)
    del made  # nor is taking it down


@given(trajectories())
def test_a_turn_s_reward_is_at_its_last_sampled_token(trajectory: Trajectory) -> None:
    every = [turn for turn in in_chains(trajectory) if len(turn.output_ids)]
    found = [reward for segment in to_segments(trajectory) for reward in segment.rewards[segment.mask]]
    ends = np.cumsum([len(turn.output_ids) for turn in every], dtype=int) - 1
    assert all(found[at] == 0 for at in set(range(len(found))) - set(ends.tolist()))
    if len(every) == len(trajectory.turns):
        assert np.allclose([found[at] for at in ends], [turn.reward for turn in every], rtol=1e-6)
    for segment in to_segments(trajectory):
        assert not segment.rewards[~segment.mask].any()


def test_the_reward_of_a_turn_without_tokens_goes_to_the_one_before_and_is_not_lost() -> None:
    silent = {"output_ids": [], "logprobs": [], "versions": ()}
    first, last = turn(reward=0.25), turn(new_ids=[4], reward=0.5, **silent)
    made = Trajectory("t", "g", "k", 0, 0, 0, (first, last), Ending.TERMINATED, 0.75)
    assert [segment.rewards.tolist() for segment in to_segments(made)] == [[0.0, 0.0, 0.75]]
    before = turn(reward=0.5, **silent)
    made = Trajectory("t", "g", "k", 0, 0, 0, (before, turn(new_ids=[5], reward=0.25)), Ending.TERMINATED, 0.75)
    assert [segment.rewards.tolist() for segment in to_segments(made)] == [[0.0, 0.0, 0.0, 0.75]]


def test_content_in_parts_is_text_and_anything_else_is_refused_in_one_line() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image_url": None}]
    made = from_builtins({"role": "user", "content": parts}, Message)
    assert made == Message("user", (TextPart("a"), TextPart("b")))
    assert (made.text, user("ab").text, Message("assistant").text) == ("ab", "ab", "")
    assert made.to_openai()["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    says = r"content\[0\] is of type 'image_url': only text is supported, no images and no audio"
    with pytest.raises(QuintainError, match=says):
        from_builtins({"role": "user", "content": image}, Message)
    with pytest.raises(ValueError, match=says):
        Message("user", image)  # type: ignore[arg-type]


def test_what_other_libraries_write_for_nothing_is_nothing() -> None:
    """As `datasets` fills in missing fields, and as OpenAI's `model_dump()` gives a message."""
    said = Message("assistant", "x")
    filled = {"role": "assistant", "content": "x", "tool_calls": None, "tool_call_id": None, "name": None}
    dumped = {"role": "assistant", "content": "x", "refusal": None, "audio": None, "tool_calls": None}
    assert from_builtins(filled, Message) == from_builtins(dumped, Message) == said
    assert Message("assistant", "x", None) == said  # type: ignore[arg-type]


@given(st.integers())
def test_an_integer_of_the_user_s_is_carried_however_long_it_is(number: int) -> None:
    long = Task("a", info={"n": number, "deep": [number << 64, {"m": -(number << 200)}]})
    assert unpack(pack(long), Task) == from_json(to_json(long), Task) == long


def test_numpy_in_a_task_is_plain_and_what_json_cannot_say_is_refused_by_name_and_type() -> None:
    made = Task(
        "a", reference=np.arange(3), seed=np.int64(7), info={"x": np.float32(0.5), "m": np.eye(2), "b": np.True_}
    )
    assert made == Task("a", reference=[0, 1, 2], seed=7, info={"x": 0.5, "m": [[1.0, 0.0], [0.0, 1.0]], "b": True})
    assert from_json(to_json(made), Task) == unpack(pack(made), Task) == made
    for changes, says in (
        ({"info": {"loss": float("nan")}}, r"a task's info\['loss'\] is nan, which JSON has no number for"),
        ({"info": {"a": [{"b": np.inf}]}}, r"a task's info\['a'\]\[0\]\['b'\] is inf"),
        ({"info": {"f": object()}}, r"a task's info\['f'\] is of type object"),
        ({"id": np.int64(3)}, "a task's id is text, not of type int64"),
        ({"seed": 2**63}, "a task's seed has at most 64 bits, not 64"),
    ):
        with pytest.raises(QuintainError, match=says):
            Task(**{"id": "a", **changes})  # type: ignore[arg-type]
    opaque = Task("a", reference={"check": [1, object()]})  # never leaves the environment's process
    for write in (to_json, pack):
        with pytest.raises(QuintainError, match=r"Task.reference\['check'\]\[1\], which is of type object"):
            write(opaque)


def turn(**changes: Any) -> Turn:
    fields: dict[str, Any] = {
        "new_ids": [1, 2],
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
        ({"new_ids": [1.5]}, "flat list of numbers"),
        ({"new_ids": [[1]]}, "flat list of numbers"),
        ({"new_ids": None}, "got NoneType"),
        ({"new_ids": [2**40]}, "32-bit"),
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


@pytest.mark.parametrize("data", [b"", b"not msgpack", b"\xc1", b"\xd9\xff", b"\x81\x80\x00"])
def test_bytes_that_are_no_msgpack_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(QuintainError, match="expected msgpack"):
        unpack(data, Message)


def test_an_exception_becomes_one_line_without_a_stack() -> None:
    failure = failure_from(RuntimeError("first\nsecond"), Stage.STEP)
    assert (failure.kind, failure.stage) == (FailureKind.CRASHED, Stage.STEP)
    assert failure.message == "RuntimeError: first second"
    assert failure_from(TimeoutError(), Stage.RESET).kind is FailureKind.TIMEOUT
    assert failure_from(MemoryError(), Stage.RESET).kind is FailureKind.RESOURCE


def test_an_endless_source_has_every_index_and_no_negative_one() -> None:
    source = EndlessTasks(lambda index: Task(str(index)))
    assert source[10**9].id == "1000000000"
    with pytest.raises(IndexError, match="give one >= 0"):
        source[-1]
