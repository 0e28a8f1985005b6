"""Trajectories in the formats of others: what we write their own code accepts, and we read it as the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintain.config.dataset import DatasetConfig
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, Message, ToolCall, assistant, system, user
from quintain.rollout.journal.exchange import documents, export
from quintain.rollout.journal.parquet import write_trajectories
from quintain.trainers.data_items import Form, items_of
from quintain.trainers.data_rows import sampled_examples
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan, to_segments

from ..envs.venvs import python_with

FORMATS = ["atif", "openenv"]


def turn(new: list[int], out: list[int], said: Message, *heard: Message, **more: Any) -> Turn:
    spans = (VersionSpan(3, 0, len(out)),)
    return Turn(new, out, [-0.5 * n for n in range(len(out))], Finish.STOP, spans, said, heard, **more)


def calling(arguments: str) -> Message:
    return Message("assistant", None, (ToolCall("c1", FunctionCall("add", arguments)),), reasoning="Hm.")


def answer(text: str) -> Message:
    return Message("tool", text, tool_call_id="c1")


def trajectory(name: str, turns: tuple[Turn, ...], reward: float | None = 1.0) -> Trajectory:
    failure = None if reward is not None else Failure.of(FailureKind.TIMEOUT, Stage.STEP, "slow")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    prompt = (system("Add."), user("1 + 1?"), assistant("2"), user("2 + 3?"))
    info = {"outcome": "correct"}
    return Trajectory(name, "g", "k", 0, 0, 0, turns, ending, reward, failure, {}, prompt, info, environment="sums")


ROWS = (
    trajectory(
        "tools",
        (
            turn([1, 2], [3, 4], calling('{"a": 2, "b": 3}'), answer("5"), user("Well?"), reward=0.25),
            turn([5, 6, 7], [8], assistant("5"), reward=0.75),
        ),
    ),
    trajectory("broken call", (turn([1], [2, 3], calling("{a: 2"), answer("error")), turn([9], [4], assistant("5")))),
    trajectory("fork", (turn([1, 2], [3], assistant("a"), user("b")), turn([1, 7], [4, 5], assistant("c"), fork="x"))),
    trajectory(
        "seats",
        (
            turn([1], [2], assistant("a"), user("b"), agent="one"),
            turn([5], [6], assistant("c"), user("d"), agent="two"),
            turn([7], [8], assistant("e"), agent="one"),
        ),
    ),
    trajectory("wrong", (turn([1], [2], assistant("6")),), reward=0.0),
    trajectory("failed", (turn([1], [2], assistant("6")),), reward=None),
    trajectory("before its first turn", (), reward=None),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_trajectories(tmp_path / "run" / "trajectories", 0, [Group("g", 0, ROWS)])
    return tmp_path / "run"


def chains(row: Trajectory) -> set[tuple[tuple[int, ...], tuple[bool, ...]]]:
    return {(tuple(segment.ids.tolist()), tuple(segment.mask.tolist())) for segment in to_segments(row)}


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_written_is_read_as_the_same_tokens_of_which_the_same_are_trained_on(
    run: Path, form: Any, tmp_path: Path
) -> None:
    out = tmp_path / f"{form}.jsonl"
    assert export(run, out, form) == (6, 1)
    for found, row in zip(documents(out), ROWS, strict=False):
        assert {(tuple(ids.tolist()), tuple(mask.tolist())) for ids, mask in found.chains} == chains(row)
        assert found.failed == (row.failure is not None)
        assert found.known["reward"] == row.reward


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("where", [{}, {"reward": ">= 1"}, {"verdict": "correct", "turns": "> 1"}], ids=str)
def test_fine_tuning_on_a_document_is_on_the_tokens_of_the_run(
    run: Path, form: Any, where: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "documents.jsonl"
    export(run, out, form)
    ours, theirs = (sampled_examples(DatasetConfig(run=str(path), where=where)) for path in (run, out))

    def told(examples: list[Any]) -> list[Any]:
        return sorted((example.ids[0].tolist(), example.trained, example.prompt) for example in examples)

    assert told(ours) == told(theirs)
    assert theirs


def test_a_part_of_a_call_that_another_program_masks_is_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    call = {"node_id": "0", "prompt_token_ids": [1], "completion_token_ids": [2, 3], "per_token_logps": [-1, -1]}
    file.write_text(json.dumps({"schema_version": 1, "turns": [{**call, "loss_mask": [0, 0, 1]}]}) + "\n")
    (example,) = sampled_examples(DatasetConfig(run=str(file)))
    assert (example.ids[0].tolist(), example.trained[0]) == ([1, 2, 3], ((2, 3),))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "KeyError: 'schema_version'"),
        ({"schema_version": "ATIF-v1.8", "steps": [{"source": "agent", "message": "hi"}]}, "KeyError: 'metrics'"),
        ({"schema_version": 1, "turns": []}, "IndexError"),
        (
            {"schema_version": 1, "turns": [{"prompt_token_ids": [1], "completion_token_ids": [2], "loss_mask": [0]}]},
            "0 places of a mask for 1 tokens",
        ),
    ],
)
def test_a_document_without_tokens_is_told_with_its_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(QuintainError) as caught:
        sampled_examples(DatasetConfig(run=str(file)))
    assert f"{file} line 1: expected ATIF 1.x or OpenEnv's TrainingTrace" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_left_of_a_file_that_could_not_be_written_whole(run: Path, tmp_path: Path) -> None:
    bad = trajectory("unknown", (turn([1], [2], assistant("6")),))
    object.__setattr__(bad.turns[0], "logprobs", np.array([np.nan], np.float32))
    write_trajectories(run / "trajectories", 1, [Group("g", 0, (bad,))])
    with pytest.raises(QuintainError, match="unknown has a number that JSON has not"):
        export(run, tmp_path / "out.jsonl", "atif")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_document_without_tokens_can_be_fine_tuned_on_as_the_chat_that_it_is(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "ours.jsonl", "atif")
    document = json.loads((tmp_path / "ours.jsonl").read_text().splitlines()[0])
    for step in document["steps"]:
        step.pop("metrics", None)
    document["agent"]["tool_definitions"] = [{"type": "function", "function": {"name": "add"}}]
    (item,) = items_of([("here", document)], Form.TEXT)
    first, second = ROWS[0].turns
    assert item.answers == ((*ROWS[0].prompt, first.message, *first.observation, second.message),)
    assert [tool.function.name for tool in item.tools] == ["add"]
    with pytest.raises(QuintainError, match="here: this is no ATIF document: KeyError: 'steps'"):
        items_of([("here", {"schema_version": "ATIF-v1.8"})], Form.TEXT)


@pytest.mark.slow
def test_the_owners_of_the_formats_read_what_we_write(run: Path, tmp_path: Path) -> None:
    for form in FORMATS:
        export(run, tmp_path / f"{form}.jsonl", form)
    trace = "from openenv.core.harness.training import TrainingTrace as Document"
    program = f"import sys; {trace}; [Document.model_validate_json(line) for line in open(sys.argv[1])]"
    python = python_with("openenv-0.10", "openenv==0.10.0")
    subprocess.run([python, "-c", program, tmp_path / "openenv.jsonl"], check=True)

    # Harbor needs Python 3.12, but not its classes of documents, which are taken out of its wheel
    wheel = ["--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--target", str(tmp_path / "harbor")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-qq", *wheel, "harbor==0.26.0"], check=True)
    stubs = "import sys, types; sys.path.insert(0, sys.argv[2])\n"
    for name in ("harbor", "harbor.models"):
        stubs += f"m = sys.modules['{name}'] = types.ModuleType('{name}')\n"
        stubs += f"m.__path__ = [sys.argv[2] + '/{name.replace('.', '/')}']\n"
    program = f"{stubs}from harbor.models.trajectories import Trajectory as Document\n"
    program += "print(len([Document.model_validate_json(line) for line in open(sys.argv[1])]))"
    found = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "atif.jsonl", tmp_path / "harbor"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == "6\n"
