"""Tasks from a file, without Python: its formats, its columns, its splits, and the verifier's word."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from quintain.envs import Action, DataEnv, LocalClient, check_environment
from quintain.failure import QuintainError
from quintain.messages import system, user

GSM = [{"question": f"Q{i % 8}\u2028?", "answer": f"so it is\n#### {i % 8}"} for i in range(16)]


def written(folder: Path, rows: list[dict[str, Any]], ending: str) -> str:
    path = folder / f"rows{ending}"
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    if ending == ".jsonl":
        path.write_text(lines)
    elif ending == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif ending == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_every_format_gives_the_same_tasks_and_splits_them_by_prompt(tmp_path, ending):
    data = written(tmp_path, GSM, ending)
    train, heldout = (
        DataEnv.tasks(s, data=data, prompt="question", verifier="math", heldout=3) for s in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (10, 6)
    assert not {task.prompt for task in train} & {task.prompt for task in heldout}
    pairs = {(row["question"], row["answer"]) for row in GSM}
    assert {(task.prompt[0].text, task.reference) for task in [*train, *heldout]} == pairs
    assert heldout == DataEnv.tasks("heldout", data=data, prompt="question", verifier="math", heldout=3)


@given(seed=st.integers(0, 9), heldout=st.integers(0, 7))
def test_the_splits_are_all_the_rows_in_their_order(tmp_path_factory, seed, heldout):
    data = written(tmp_path_factory.getbasetemp(), GSM, ".jsonl")
    asked = dict(data=data, verifier="math", prompt="question", heldout=heldout, seed=seed)
    train, hidden = (DataEnv.tasks(split, **asked) for split in ("train", "heldout"))
    assert sorted(int(task.id.split("-")[1]) for task in [*train, *hidden]) == list(range(1, 33, 2))
    for tasks in (train, hidden):
        assert [int(task.id.split("-")[1]) for task in tasks] == sorted(int(task.id.split("-")[1]) for task in tasks)
    assert len({task.prompt for task in hidden}) == heldout


def test_a_prompt_may_be_messages_and_an_answer_a_number_or_a_mapping(tmp_path):
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"prompt": said, "answer": 5}, {"prompt": "p", "answer": {"a": [1]}}]
    first, second = DataEnv.tasks("train", data=written(tmp_path, rows, ".jsonl"), verifier="exact", heldout=0)
    assert first.prompt == (system("s"), user("u"))
    assert (first.reference, second.reference) == ("5", {"a": [1]})


async def test_the_reward_is_what_the_named_verifier_says_with_its_options(tmp_path):
    data = written(tmp_path, GSM, ".jsonl")
    for verifier, more, expected in (("math", {}, [1.0, 0.0]), ("exact", {}, [0.0, 0.0])):
        options = {"data": data, "prompt": "question", "heldout": 1, "verifier": verifier, "verifier_options": more}
        async with LocalClient(DataEnv, options) as client:
            rewards = []
            for answer in ("It is 0.", "It is 9."):
                env = client.episode()
                task = next(task for task in client.tasks("train") if task.reference.endswith(" 0"))
                await env.reset(task, seed=0)
                rewards.append((await env.step(Action.text(answer))).reward)
        assert rewards == expected


async def test_an_environment_from_a_file_is_sound(tmp_path):
    options = {"data": written(tmp_path, GSM, ".csv"), "prompt": "question", "heldout": 2, "verifier": "math"}
    assert await check_environment(DataEnv, options=options) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "a.jsonl",
            '{"prompt": "p", "answer": 1}\nno',
            "a.jsonl line 2: expected {'prompt': ..., 'answer': ...} in JSON",
        ),
        ("a.jsonl", "[]", "a.jsonl line 1: expected"),
        ("a.jsonl", '{"promt": "p", "answer": 1}', "a.jsonl row 1 has no column 'prompt': did you mean 'promt'?"),
        (
            "a.jsonl",
            '{"prompt": "p", "label": 1}',
            "no column 'answer' (its columns: prompt, label; the option 'answer'",
        ),
        (
            "a.jsonl",
            '{"prompt": 5, "answer": 1}',
            "row 1: a prompt is text or a list of messages: expected a list of messages {role, content}, got 5",
        ),
        ("a.jsonl", '{"prompt": [{"role": "x", "content": ""}], "answer": 1}', "row 1: a prompt is text or a list"),
        ("a.jsonl", '{"prompt": [{}], "answer": 1}', "row 1: a prompt is text or a list"),
        ("a.jsonl", '{"prompt": "p", "answer": null}', "row 1: 'answer' is empty"),
        ("a.jsonl", '{"prompt": "p", "answer": 1}', "has 1 different prompts: heldout must leave some, not be 200"),
        ("a.csv", "prompt,answer\np,1\np,1,2\n", "a.csv line 3: the header has 2 columns, this row 3"),
        ("a.csv", 'prompt,answer\n"p,1\n', "a.csv line 2: unexpected end of data"),
        ("a.csv", "", "has 0 different prompts"),
        ("a.parquet", "no", "cannot read"),
        ("a.jsonl.gz", "no", "cannot read"),
    ],
)
def test_a_wrong_file_column_or_row_is_one_line(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(QuintainError, match=re.escape(complaint)) as error:
        DataEnv.tasks("train", data=str(path), verifier="math")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_that_is_not_there_is_named(ending):
    with pytest.raises(QuintainError, match=f"cannot read /nowhere.{ending}"):
        DataEnv.tasks("train", data=f"/nowhere.{ending}", verifier="math")


def test_a_verifier_that_is_not_there_is_said_before_a_task_is_played(tmp_path):
    with pytest.raises(QuintainError, match="there is no verifier 'mth': did you mean 'math'"):
        DataEnv.tasks("train", data=written(tmp_path, GSM, ".jsonl"), prompt="question", verifier="mth")
