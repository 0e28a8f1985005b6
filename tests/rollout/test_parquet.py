"""Trajectories as Parquet: nothing is lost, nothing is half written, everybody can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintain.arrays import as_floats, as_ints
from quintain.codec import pack
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, Message, TextPart, ToolCall, assistant, user
from quintain.rollout.journal.parquet import Stored, read_trajectories, write_stored, write_trajectories
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from ..full_disk import full_disk

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
REAL = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(0, 2**62)
TOKENS = st.integers(-(2**31), 2**31 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | REAL | TEXT,  # what msgpack holds
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, TEXT, st.builds(FunctionCall, TEXT, TEXT))
MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.none() | TEXT | st.lists(st.builds(TextPart, TEXT), max_size=2).map(tuple),
    st.lists(CALLS, max_size=2).map(tuple),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | TEXT,
)
FAILURES = st.builds(Failure, st.sampled_from(FailureKind), st.sampled_from(Stage), TEXT, st.booleans())


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    spans: list[VersionSpan] = []
    for length in draw(st.lists(st.integers(1, 4), max_size=3)):
        start = spans[-1].end if spans else 0
        spans.append(VersionSpan(draw(st.integers(0, 99)), start, start + length))
    count = spans[-1].end if spans else 0
    logprobs = st.floats(width=32)  # minus infinity and NaN are what an engine may say: they are kept, bit for bit
    return Turn(
        as_ints(draw(st.lists(TOKENS, max_size=5))),
        as_ints(draw(st.lists(TOKENS, min_size=count, max_size=count))),
        as_floats(draw(st.lists(logprobs, min_size=count, max_size=count))),
        draw(st.sampled_from(Finish)),
        tuple(spans),
        draw(MESSAGES),
        tuple(draw(st.lists(MESSAGES, max_size=2))),
        draw(REAL),
        draw(st.none() | TEXT),
        draw(REAL),
        draw(REAL),
        draw(TEXT),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    failure = draw(st.none() | FAILURES)
    ending = Ending.FAILED if failure else draw(st.sampled_from([Ending.TERMINATED, Ending.TRUNCATED]))
    return Trajectory(
        draw(TEXT),
        draw(TEXT),
        draw(TEXT),
        draw(WHOLE),
        draw(st.integers(0, 99)),
        draw(WHOLE),
        tuple(draw(st.lists(turns(), max_size=3))),
        ending,
        None if failure else draw(REAL),
        failure,
        draw(st.dictionaries(TEXT, REAL, max_size=2)),
        tuple(draw(st.lists(MESSAGES, max_size=2))),
        draw(st.dictionaries(TEXT, JSON, max_size=2)),
        draw(st.integers(1, 5)),
        draw(REAL),
        draw(TEXT),
        draw(st.none() | TEXT),
    )


def made(place: int, *, tokens: int = 3, failure: Failure | None = None) -> Trajectory:
    turn = Turn(
        as_ints([1, 2]),
        as_ints(range(tokens)),
        as_floats(np.full(tokens, -0.5)),
        Finish.STOP,
        (VersionSpan(4, 0, tokens),),
        assistant("four"),
        (),
        1.0,
    )
    ending = Ending.FAILED if failure else Ending.TERMINATED
    name = f"00000001/{place:03d}"
    return Trajectory(
        name, "00000001", "train/7", 7, place, 11, (turn,), ending, None if failure else 1.0, failure,
        {} if failure else {"correct": 1.0}, (user("2 + 2?"),),
    )  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(trajectories(), max_size=3))
def test_what_is_read_equals_what_was_written(rows: list[Trajectory], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_stored(path, [Stored("run", place, row) for place, row in enumerate(rows)])
    found = list(read_trajectories(path))
    assert [(row.run, row.step) for row in found] == [("run", place) for place in range(len(rows))]
    assert [pack(row.trajectory) for row in found] == [pack(row) for row in rows]


def test_more_rows_than_are_decoded_at_once_keep_their_tokens(tmp_path: Path) -> None:
    rows = [made(place, tokens=1 + place % 5) for place in range(200)]
    write_trajectories(tmp_path / "run-1" / "trajectories", 3, [Group("g", 7, tuple(rows))])
    found = list(read_trajectories(tmp_path / "run-1" / "trajectories"))
    assert [pack(row.trajectory) for row in found] == [pack(row) for row in rows]
    assert {(row.run, row.step) for row in found} == {("run-1", 3)}


def test_datasets_reads_every_column_of_several_steps(tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = tmp_path / "run-1" / "trajectories"
    failure = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "slow")
    bare = Trajectory("b", "g", "t", 0, 0, 1, (), Ending.FAILED, None, failure)
    write_trajectories(folder, 0, [Group("g", 0, (bare,))])  # nothing but empty lists and nulls
    write_trajectories(folder, 1, [Group("g", 7, (made(0), made(1)))])
    rows: Any = load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["step"] for row in rows] == [0, 1, 1]
    assert (rows[0]["failure_kind"], rows[0]["failure_stage"], rows[0]["reward"]) == ("timeout", "step", None)
    assert rows[1]["turns"][0]["output_ids"] == [0, 1, 2]
    assert rows[1]["turns"][0]["versions"] == [{"version": 4, "start": 0, "end": 3}]
    assert rows[1]["turns"][0]["message"]["content"] == "four"
    assert rows[1]["rewards"] == [{"name": "correct", "value": 1.0}]


def test_writing_a_step_again_replaces_it_and_sweeps_what_a_killed_writer_left(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".step-000000.parquet.{dead.stdout.strip()}-ab.tmp").write_bytes(b"half")
    mine = tmp_path / f".step-000000.parquet.{os.getpid()}-ab.tmp"  # of a writer that is still at work
    mine.write_bytes(b"half")
    for count in (2, 1):
        write_trajectories(tmp_path, 0, [Group("g", 7, tuple(made(place) for place in range(count)))])
    assert len(list(read_trajectories(tmp_path))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000.parquet", mine.name}


def test_a_full_disk_is_a_failure_and_leaves_the_old_file_whole(tmp_path: Path) -> None:
    write_trajectories(tmp_path, 0, [Group("g", 7, (made(0),))])
    rng = np.random.default_rng(0)
    row = made(0, tokens=4096)
    noise = as_ints(rng.integers(0, 2**31, 4096))
    big = Trajectory(
        row.id, row.group, row.task, 7, 0, 0,
        (Turn(noise, noise, as_floats(rng.random(4096)), Finish.STOP, (VersionSpan(0, 0, 4096),), assistant("a")),),
        row.ending, 1.0,
    )  # fmt: skip
    said = r"cannot write .*step-000000.parquet: .*free space"
    with full_disk(8192), pytest.raises(FailureError, match=said) as caught:
        write_trajectories(tmp_path, 0, [Group("g", 7, (big,))])
    failure = caught.value.failure
    assert (failure.kind, failure.stage, failure.retryable) == (FailureKind.RESOURCE, Stage.JOURNAL, False)
    (kept,) = read_trajectories(tmp_path)
    assert pack(kept.trajectory) == pack(made(0))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000.parquet"]


def test_a_file_of_somebody_else_a_damaged_one_and_none_are_one_clear_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(QuintainError, match="no trajectories in"):
        list(read_trajectories(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(QuintainError, match="no trajectories of ours"):
        list(read_trajectories(tmp_path))
    (tmp_path / "other.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(QuintainError, match="cannot read trajectories"):
        list(read_trajectories(tmp_path / "other.parquet"))
