"""Data sets: their sources, the order of their rows, packing, and what is cached."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import pack_dataset

from quintain.config.dataset import DatasetConfig, satisfies
from quintain.envs import LocalClient, SingleTurnEnv, Task, user
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.episodes.episode import run_episode
from quintain.rollout.journal.parquet import write_trajectories
from quintain.trainers.data_items import Form, items_of
from quintain.trainers.data_rows import rows_of, sampled_examples
from quintain.trainers.datasets import ExampleSource, drawn, packed, rendered
from quintain.trainers.examples import Renderer, RenderOptions
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from ..fake_engine import FakeEngine
from ..rollout.stage import CHAT as BYTES
from ..rollout.test_scheduler import spec
from .test_examples import CHAT, smol

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_come_from_a_file_or_a_folder_of_files_under_our_names(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", [{"question": "2"}])
    jsonl(tmp_path / "a.jsonl", [{"question": "1"}])
    (tmp_path / "c.csv").write_text("question\n3\n")
    (tmp_path / "README.md").write_text("no rows")
    found = list(rows_of(DatasetConfig(path=str(tmp_path), columns={"prompt": "question"})))
    assert [row for _, row in found] == [{"prompt": "1"}, {"prompt": "2"}, {"prompt": "3"}]
    assert found[0][0] == f"{tmp_path}/a.jsonl row 1"


@pytest.mark.parametrize(
    ("text", "columns", "complaint"),
    [
        ("", {}, "has no rows"),
        ('{"question": "1"}', {"prompt": "qestion"}, "has no column 'qestion': did you mean 'question'?"),
        ("no json", {}, "line 1: expected a JSON object in each line"),
        (None, {}, "cannot read"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, text: str | None, columns: dict[str, str], complaint: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(QuintainError) as error:
        list(rows_of(DatasetConfig(path=str(path), columns=columns)))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_file_is_a_hub_s_and_what_goes_wrong_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hub(path: str, name: str | None, *, split: str, streaming: bool) -> Any:
        if path != "some/data":
            raise ConnectionError("no such\n  data set")
        found = datasets.Dataset.from_list([{"text": f"{name} {split}"}])
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr(datasets, "load_dataset", hub)
    for streaming in (False, True):
        found = list(rows_of(DatasetConfig(path="some/data", name="small", split="test", streaming=streaming)))
        assert found == [("some/data row 1", {"text": "small test"})]
    with pytest.raises(QuintainError, match="cannot load 'nobody/nothing': no such data set"):
        list(rows_of(DatasetConfig(path="nobody/nothing")))


def trajectory(
    number: int, *, reward: float | None = 1.0, turns: int = 1, environment: str = "math", outcome: str = "correct"
) -> Trajectory:
    made = []
    for turn in range(turns):
        ids = [number * 100 + turn * 10 + k for k in range(5)]
        made.append(Turn(ids[:2], ids[2:], [-0.5] * 3, Finish.STOP, (VersionSpan(0, 0, 3),), assistant("x")))
    failure = None if reward is not None else Failure.of(FailureKind.TIMEOUT, Stage.STEP, "slow")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    return Trajectory(
        f"t{number}",
        "g",
        "k",
        0,
        0,
        0,
        tuple(made),
        ending,
        reward,
        failure,
        {"style": 0.5},
        info={"outcome": outcome},
        environment=environment,
    )


@pytest.fixture
def run(tmp_path: Path) -> str:
    rows = [
        trajectory(0),
        trajectory(1, reward=0.0, outcome="wrong"),
        trajectory(2, turns=3),
        trajectory(3, reward=None),
        trajectory(4, environment="code"),
    ]
    write_trajectories(tmp_path / "run" / "trajectories", 0, [Group("g", 0, tuple(rows))])
    return str(tmp_path / "run")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, [0, 1, 2, 4]),
        ({"reward": ">= 1"}, [0, 2, 4]),
        ({"reward": 0}, [1]),
        ({"verdict": "wrong"}, [1]),
        ({"verdict": ["wrong", "correct"], "environment": "math"}, [0, 1, 2]),
        ({"environment": "!= math"}, [4]),
        ({"turns": "> 1"}, [2]),
        ({"turns": "<= 1", "reward": "> 0.5"}, [0, 4]),
        ({"rewards.style": ">= 0.5"}, [0, 1, 2, 4]),
        ({"tokens": "== 9"}, [2]),
    ],
    ids=str,
)
def test_of_a_run_those_trajectories_are_taken_that_are_as_asked_with_their_very_tokens(
    run: str, where: dict[str, Any], kept: list[int]
) -> None:
    examples = sampled_examples(DatasetConfig(run=run, where=where))
    assert [example.where.rsplit(" ", 1)[1] for example in examples] == [f"t{n}" for n in kept]
    for example, number in zip(examples, kept, strict=True):
        turns = 3 if number == 2 else 1
        assert example.ids[0].tolist() == [number * 100 + turn * 10 + k for turn in range(turns) for k in range(5)]
        assert example.trained[0] == tuple((5 * turn + 2, 5 * turn + 5) for turn in range(turns))


class Colour(SingleTurnEnv):
    """Asks for a colour; green is right."""

    verifier = "exact"

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task("sky", (user("Which colour?"),), reference="green")]


def saying(said: str, *_: Any) -> list[int]:
    return [*said.encode(), 0]


async def test_the_verdict_on_an_episode_that_was_played_says_whether_it_is_trained_on(tmp_path: Path) -> None:
    async with LocalClient(Colour) as client:
        played = [
            await run_episode(
                spec(id=said, task=Colour.tasks("train")[0]),
                make_env=client.episode,
                engine=FakeEngine(partial(saying, said), words=128),
                chat=BYTES,
            )
            for said in ("green", "red", "blue")
        ]
    write_trajectories(tmp_path / "trajectories", 0, [Group("g", 0, tuple(played))])
    for verdict, kept in (("correct", ["green"]), ("wrong", ["red", "blue"])):
        examples = sampled_examples(DatasetConfig(run=str(tmp_path), where={"verdict": verdict}))
        assert [example.where.rsplit(" ", 1)[1] for example in examples] == kept


def test_a_filter_that_leaves_nothing_is_told_with_what_there_was(run: str) -> None:
    with pytest.raises(QuintainError, match=r"none of the 5 trajectories of .* is as asked"):
        sampled_examples(DatasetConfig(run=run, where={"reward": "> 1"}))
    with pytest.raises(QuintainError, match=r"dataset\.run: there is no"):
        sampled_examples(DatasetConfig(run=f"{run}/nothing"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of 'path' .* and 'run'"),
        ({"path": "x", "run": "y"}, "exactly one of 'path' .* and 'run'"),
        ({"path": "x", "where": {"reward": 1}}, "'where' chooses among trajectories"),
        ({"run": "x", "where": {"rewad": 1}}, "there is no 'rewad' of a trajectory"),
        ({"run": "x", "where": {"reward": ">= much"}}, "reward: expected a number after >=, got 'much'"),
    ],
    ids=str,
)
def test_a_source_that_makes_no_sense_is_refused_before_anything_is_read(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**given)


def test_nothing_satisfies_a_comparison_where_there_is_no_value() -> None:
    assert not satisfies(None, ">= 0")
    assert not satisfies("high", ">= 0")


@given(sizes=SIZES, count=st.integers(0, 60), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_every_pass_sees_each_example_once_and_a_longer_run_begins_as_the_shorter_one(
    sizes: list[int], count: int, more: int, seed: int
) -> None:
    size, order = sum(sizes), drawn(sizes, None, count, seed=seed)
    for start in range(0, count - size + 1, size):
        assert sorted(order[start : start + size]) == list(range(size))
    assert np.array_equal(order, drawn(sizes, None, count + more, seed=seed)[:count])


@given(sizes=SIZES, seed=st.integers(0, 5), data=st.data())
def test_a_mixture_draws_by_weight_and_passes_over_each_data_set_whole(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.5, 4), min_size=len(sizes), max_size=len(sizes)))
    order = drawn(sizes, weights, 4000, seed=seed)
    edges = np.cumsum([0, *sizes])
    shares = [np.mean((order >= low) & (order < high)) for low, high in pairwise(edges)]
    assert np.allclose(shares, np.array(weights) / sum(weights), atol=0.05)
    for low, high in pairwise(edges):
        mine = order[(order >= low) & (order < high)]
        counts = Counter(mine.tolist())
        assert max(counts.values()) - min(counts.get(i, 0) for i in range(low, high)) <= 1


@given(lengths=st.lists(st.integers(1, 20), max_size=60), capacity=st.integers(1, 20))
def test_bins_hold_everything_once_within_capacity_and_are_few(lengths: list[int], capacity: int) -> None:
    bins = packed(lengths, capacity)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    for each in bins:
        assert len(each) == 1 or sum(lengths[i] for i in each) <= capacity
    fits = [length for length in lengths if length <= capacity]
    alone = len(lengths) - len(fits)
    assert len(bins) - alone <= 11 / 9 * -(-sum(fits) // capacity) * 2 + 1


def test_bins_are_filled_as_tightly_as_trl_s() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 64, 300).tolist()
    theirs = pack_dataset(datasets.Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), 64, "bfd")
    assert len(packed(lengths, 64)) <= len(theirs)


def test_a_step_s_examples_are_those_of_its_bins() -> None:
    units: Any = [["a"], ["b", "c"], ["d"]]
    source = ExampleSource(units, np.array([2, 1, 0, 1]), 2)
    assert [source.batch(step) for step in (0, 1)] == [["d", "b", "c"], ["a", "b", "c"]]


def test_what_was_rendered_once_is_read_again_until_rows_tokenizer_or_options_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer, times = smol(), 0

    def ask(text: str = "x", chat: str = "", **options: Any) -> Any:
        items = items_of([("row 1", {"messages": [CHAT[0], {"role": "assistant", "content": text}]})], Form.TEXT)
        wanted = RenderOptions(**options)

        def renderer() -> Renderer:
            nonlocal times
            times += 1
            return Renderer(tokenizer, lambda: TemplateChat(tokenizer), wanted)

        return rendered(items, renderer, tokenizer=tokenizer, options=wanted, chat=chat)

    first, again = ask(), ask()
    assert times == 1
    assert again.examples[0].ids[0].tolist() == first.examples[0].ids[0].tolist()
    assert again.examples[0].trained == first.examples[0].trained
    for different in ({"text": "y"}, {"max_length": 5}, {"assistant_only_loss": True}, {"chat": "thinking"}):
        ask(**different)
    assert times == 5
    for file in (tmp_path / "quintain" / "rendered").iterdir():
        file.write_bytes(b"broken")
    assert ask().examples[0].ids[0].tolist() == first.examples[0].ids[0].tolist()
