"""Trajectories as Parquet: one row each, for us and for everybody who reads tables (`datasets`, pandas, DuckDB).

Invariants:
- lossless: `read_trajectories` gives trajectories equal to those that `write_trajectories` was given, tokens,
  log-probabilities and times bit for bit;
- whole or not at all: a file appears under its name when it is complete and on disk, and never before;
- every file has the same columns with the same types (`schema`), empty lists and missing failures included.

Columns are named after the fields of `Trajectory` and `Turn`; beside them stand `run` and `step`, and what is handy in
a table: `versions` per turn, `output_tokens`, and the failure's parts. A message's content is in `content`, or in
`parts` where it has parts. What has no fixed form (`info`) is JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.files import write_whole
from quintain.messages import FunctionCall, Message, TextPart, ToolCall
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

if TYPE_CHECKING:
    import pyarrow

FORMAT: Final = "1"
"""Raised when columns change their meaning; stands in the file's metadata as `quintain.trajectories`."""
TRAJECTORIES: Final = "trajectories"
"""Their folder in a run's."""
ROWS_AT_ONCE: Final = 64
"""Rows decoded at a time: a row may hold a hundred thousand tokens."""
TURNS_AT_ONCE: Final = 256
"""Turns coded at a time."""
_FORMAT_KEY: Final = b"quintain.trajectories"
_ALIKE = ("id", "group", "task", "index", "member", "seed", "reward", "attempts", "elapsed_s", "environment", "task_id")
"""Fields of a trajectory that stand in its row as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A trajectory and where it comes from: the run's name and the step whose batch it was part of."""

    run: str
    step: int
    trajectory: Trajectory


def write_trajectories(folder: Path, step: int, groups: Iterable[Group]) -> None:
    """Write a step's trajectories to `step-000012.parquet` in `folder`, which is `trajectories/` in the run's folder.

    Raises FailureError (resource, at stage journal) where they cannot be written; then no such file is left.
    """
    rows = (Stored(folder.parent.name, step, row) for group in groups for row in group.trajectories)
    write_stored(folder / f"step-{step:06d}.parquet", rows)


def write_stored(path: Path, rows: Iterable[Stored]) -> None:
    """Write `rows` to `path`, replacing what is there once they are written; few are in memory at a time.

    Raises FailureError.
    """
    pa, pq = _pyarrow()

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, schema(), compression="zstd") as writer:
            for some in _few(rows):
                writer.write_table(pa.Table.from_pylist(some, schema=schema()))

    try:
        write_whole(path, write)
    except QuintainError as error:
        raise FailureError.of(FailureKind.RESOURCE, Stage.JOURNAL, f"{error}, then resume", retryable=False) from None


def _few(rows: Iterable[Stored]) -> Iterator[list[dict[str, Any]]]:
    """`rows` a few at a time: what codes them lets no other thread run."""
    some: list[dict[str, Any]] = []
    turns = 0
    for row in rows:
        some.append(_row(row))
        turns += 1 + len(row.trajectory.turns)
        if turns >= TURNS_AT_ONCE:
            yield some
            some, turns = [], 0
    if some:
        yield some


def read_trajectories(path: Path) -> Iterator[Stored]:
    """The trajectories in the Parquet file `path`, or in all of a folder, a run's too, in the order of their names.

    Raises QuintainError where there are none, or where a file is not ours or damaged.
    """
    pa, pq = _pyarrow()
    path = path / TRAJECTORIES if (path / TRAJECTORIES).is_dir() else path
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise QuintainError(f"no trajectories in {path}: expected files such as step-000000.parquet")
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                _check_format(file, opened.schema_arrow)
                for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE):
                    yield from _stored(batch)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise QuintainError(f"cannot read trajectories in {file}: {error}") from None


def schema() -> pyarrow.Schema:
    """The columns of every file."""
    pa, _ = _pyarrow()
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    call = pa.struct([("id", text), ("name", text), ("arguments", text)])
    message = pa.struct(
        [
            ("role", text),
            ("content", text),
            ("parts", pa.list_(pa.struct([("type", text), ("text", text)]))),
            ("tool_calls", pa.list_(call)),
            ("tool_call_id", text),
            ("name", text),
            ("reasoning", text),
        ]
    )
    span = pa.struct([("version", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
    turn = pa.struct(
        [
            ("new_ids", pa.list_(pa.int32())),
            ("output_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),
            ("finish", text),
            ("versions", pa.list_(span)),
            ("message", message),
            ("observation", pa.list_(message)),
            ("reward", real),
            ("fork", text),
            ("generate_s", real),
            ("env_s", real),
            ("agent", text),
        ]
    )
    columns = [
        ("run", text),
        ("step", whole),
        ("id", text),
        ("group", text),
        ("task", text),
        ("index", whole),
        ("member", pa.int32()),
        ("seed", whole),
        ("ending", text),
        ("reward", real),
        ("rewards", pa.list_(pa.struct([("name", text), ("value", real)]))),
        ("failure_kind", text),
        ("failure_stage", text),
        ("failure_message", text),
        ("failure_retryable", pa.bool_()),
        ("output_tokens", whole),
        ("prompt", pa.list_(message)),
        ("turns", pa.list_(turn)),
        ("info", text),
        ("attempts", pa.int32()),
        ("elapsed_s", real),
        ("environment", text),
        ("task_id", text),
    ]
    return pa.schema(columns, metadata={_FORMAT_KEY: FORMAT.encode()})


def _pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. QuintainError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise QuintainError("trajectories are Parquet files, which need pyarrow: install quintain[train]") from None
    return pyarrow, pyarrow.parquet


def _row(stored: Stored) -> dict[str, Any]:
    row, failure = stored.trajectory, stored.trajectory.failure
    return {
        **{name: getattr(row, name) for name in _ALIKE},
        "run": stored.run,
        "step": stored.step,
        "ending": str(row.ending),
        "rewards": [{"name": name, "value": value} for name, value in row.rewards.items()],
        "failure_kind": None if failure is None else str(failure.kind),
        "failure_stage": None if failure is None else str(failure.stage),
        "failure_message": None if failure is None else failure.message,
        "failure_retryable": None if failure is None else failure.retryable,
        "output_tokens": row.output_tokens,
        "prompt": [_of_message(message) for message in row.prompt],
        "turns": [_of_turn(turn) for turn in row.turns],
        "info": json.dumps(dict(row.info), ensure_ascii=False),
    }


def _of_turn(turn: Turn) -> dict[str, Any]:
    return {
        **{field.name: getattr(turn, field.name) for field in fields(turn) if field.name != "before"},
        "finish": str(turn.finish),
        "versions": [asdict(span) for span in turn.versions],
        "message": _of_message(turn.message),
        "observation": [_of_message(message) for message in turn.observation],
    }


def _of_message(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": None if isinstance(message.content, tuple) else message.content,
        "parts": [{"type": part.type, "text": part.text} for part in message.content]
        if isinstance(message.content, tuple)
        else None,
        "tool_calls": [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in message.tool_calls
        ],
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning": message.reasoning,
    }


def _stored(batch: pyarrow.RecordBatch) -> Iterator[Stored]:
    turns = batch.column("turns")
    rows = batch.drop_columns(["turns"]).to_pylist()
    for place, row in enumerate(rows):
        yield Stored(row["run"], row["step"], _trajectory(row, tuple(_turns(turns[place].values))))


def _turns(turns: pyarrow.StructArray) -> Iterator[Turn]:
    """The turns of one trajectory. Tokens go from Arrow's buffers to arrays, not by way of lists."""
    arrays = {name: turns.field(name) for name in ("new_ids", "output_ids", "logprobs")}
    names = [field.name for field in turns.type if field.name not in arrays]
    columns = {name: turns.field(name).to_pylist() for name in names}
    for place in range(len(turns)):
        row = {name: column[place] for name, column in columns.items()}
        row |= {name: array[place].values.to_numpy() for name, array in arrays.items()}
        row["finish"], row["message"] = Finish(row["finish"]), _message(row["message"])
        row["versions"] = tuple(VersionSpan(**span) for span in row["versions"])
        row["observation"] = tuple(map(_message, row["observation"]))
        yield Turn(**row)


def _trajectory(row: dict[str, Any], turns: tuple[Turn, ...]) -> Trajectory:
    failure = None
    if row["failure_kind"] is not None:
        kind, stage = FailureKind(row["failure_kind"]), Stage(row["failure_stage"])
        failure = Failure(kind, stage, row["failure_message"], row["failure_retryable"])
    return Trajectory(
        **{name: row[name] for name in _ALIKE},
        turns=turns,
        ending=Ending(row["ending"]),
        failure=failure,
        rewards={part["name"]: part["value"] for part in row["rewards"]},
        prompt=tuple(map(_message, row["prompt"])),
        info=json.loads(row["info"]),
    )


def _message(row: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(call["id"], FunctionCall(call["name"], call["arguments"])) for call in row["tool_calls"])
    content = row["content"] if row["parts"] is None else tuple(TextPart(part["text"]) for part in row["parts"])
    return Message(row["role"], content, calls, row["tool_call_id"], row["name"], row["reasoning"])


def _check_format(file: Path, found: pyarrow.Schema) -> None:
    form = (found.metadata or {}).get(_FORMAT_KEY, b"").decode()
    if form != FORMAT or found.names != schema().names:
        was = f"of format {form}" if form else "no trajectories of ours"
        raise QuintainError(f"{file} is {was}: expected trajectories of format {FORMAT}, as this quintain writes them")
