"""Data sets that are read while they are trained on: the order of their rows, what is counted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.config import ExperimentConfig, parse_config
from quintain.failure import QuintainError
from quintain.trainers.data_items import DataItem
from quintain.trainers.datasets import Data, prepared, read
from quintain.trainers.streaming import PATIENCE_ROWS, ItemStream

from .test_datasets import jsonl
from .test_examples import MODEL


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def streamed(count: int, window: int, seed: int, read: list[int] | None = None) -> ItemStream:
    """A stream of items called 0, 1, 2, ...; `read` is told which were read."""

    def items() -> Iterator[DataItem]:
        for number in range(count):
            if read is not None:
                read.append(number)
            yield DataItem(str(number), None, ("x",))

    return ItemStream(items, window=window, seed=[seed])


@given(count=st.integers(1, 12), window=st.integers(1, 15), seed=st.integers(0, 5), places=st.lists(st.integers(0, 60)))
def test_what_stands_at_a_place_does_not_depend_on_what_was_asked_for_before(
    count: int, window: int, seed: int, places: list[int]
) -> None:
    stream = streamed(count, window, seed)
    order = [int(stream.at(place).where) for place in range(5 * count)]
    for start in range(0, 5 * count, count):
        assert sorted(order[start : start + count]) == list(range(count))
        for at in range(start, start + count, window):
            edge = min(at + window, start + count)
            assert sorted(order[at:edge]) == list(range(at - start, edge - start)), "an order within each window"
    other = streamed(count, window, seed)
    for place in places:
        assert int(other.at(place).where) == int(streamed(count, window, seed).at(place).where)
        assert place >= len(order) or int(other.at(place).where) == order[place]


def test_a_run_that_goes_on_after_many_passes_reads_two_of_them_at_most() -> None:
    seen: list[int] = []
    streamed(100, 8, 0, seen).at(100 * 50 + 3)
    assert 100 < len(seen) <= 100 + 8


def experiment(rows: Path, *overrides: str) -> ExperimentConfig:
    text = (
        f"model: {{path: {MODEL}}}\ndataset: {{path: {rows}, streaming: true, shuffle_buffer: 4}}\n"
        "trainer: {algorithm: sft, max_steps: 20, train_batch_size: 3}"
    )
    return parse_config(text, overrides)


def data(config: ExperimentConfig) -> Data:
    return prepared(config, read(config))


def texts(count: int, at: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}", "completion": " yes"} for number in range(at, at + count)]


def places(found: Any) -> list[str]:
    return [example.where.rpartition("/")[2] for example in found]


def test_the_batch_of_a_step_is_the_same_for_a_run_that_is_resumed_there_and_rows_held_back_are_never_in_it(
    tmp_path: Path,
) -> None:
    rows = tmp_path / "rows.jsonl"
    jsonl(rows, texts(11))
    config = experiment(rows, "evaluation.num_tasks=2")
    run = data(config)
    assert places(run.heldout) == ["rows.jsonl row 1", "rows.jsonl row 2"]
    assert run.notes == ("data: streamed, 4 rows looked at, 2 held out",)
    batches = [places(run.source.batch(step)) for step in range(20)]
    assert {len(batch) for batch in batches} == {3}
    for step in (19, 4, 0):
        assert places(data(config).source.batch(step)) == batches[step]
    for a_pass in range(0, 18, 3):
        rows_seen = sorted(int(where.split()[-1]) for batch in batches[a_pass : a_pass + 3] for where in batch)
        assert rows_seen == list(range(3, 12))


def test_a_mixture_of_streams_draws_by_weight_and_the_same_when_it_is_resumed(tmp_path: Path) -> None:
    for name in ("often", "seldom"):
        jsonl(tmp_path / f"{name}.jsonl", texts(5))
    each = [
        {"path": str(tmp_path / f"{name}.jsonl"), "streaming": True, "weight": weight}
        for name, weight in (("often", 9), ("seldom", 1))
    ]
    config = experiment(tmp_path, f"dataset={json.dumps(each)}", "trainer.max_steps=200")
    source = data(config).source
    batches = [places(source.batch(step)) for step in range(200)]
    often = sum(where.startswith("often") for batch in batches for where in batch) / 600
    assert 0.85 < often < 0.95
    assert places(data(config).source.batch(150)) == batches[150]


def test_rows_of_which_nothing_is_left_are_counted_and_too_many_end_the_run(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    jsonl(rows, [*texts(8), {"prompt": "long " * 30, "completion": " yes"}, *texts(3)])
    asked = ("trainer.max_length=20", "dataset.shuffle_buffer=1", "trainer.max_dropped=0.01", "trainer.max_steps=100")
    source: Any = data(experiment(rows, *asked)).source
    found = [(len(source.batch(step)), source.figures["rows_dropped"]) for step in range(4)]
    assert found == [(3, 0), (3, 0), (2, 1), (3, 0)]

    def go_on() -> None:
        for step in range(4, 100):
            source.batch(step)

    with pytest.raises(QuintainError, match=r"row 9: nothing to train on is left of it, nor of 11 of 129 rows in all"):
        go_on()
    assert PATIENCE_ROWS * 0.01 == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.num_train_epochs=1"], "trainer.num_train_epochs needs all rows before the first step"),
        (["trainer.packing=true"], "trainer.packing needs all rows before the first step"),
        (
            ["trainer={algorithm: dpo, precompute_ref_log_probs: true}"],
            "trainer.precompute_ref_log_probs needs all rows",
        ),
        (["dataset=[{path: a, streaming: true}, {path: b}]"], "stream every data set of the mixture, or none"),
        (["dataset=[{path: a, streaming: true}, {path: b, streaming: true}]"], "give each a weight"),
        (
            [
                "dataset=[{path: a, streaming: true, weight: 1}, {path: b, streaming: true, weight: 1}]",
                "evaluation.num_tasks=1",
            ],
            "rows are held back of a single stream",
        ),
        (["evaluation.dataset={path: a, streaming: true}"], "what is held out is read whole"),
        (["dataset={run: a, streaming: true}"], "'streaming' reads rows as they are stored"),
    ],
    ids=str,
)
def test_what_needs_to_know_all_rows_is_refused_where_they_are_streamed(overrides: list[str], message: str) -> None:
    with pytest.raises(QuintainError, match=message):
        experiment(Path("rows.jsonl"), *overrides)


def test_a_stream_that_cannot_be_trained_on_is_told_before_a_model_is_loaded_or_at_its_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    jsonl(rows, texts(2))
    with pytest.raises(QuintainError, match=r"rows\.jsonl has no rows beyond those held back"):
        read(experiment(rows, "evaluation.num_tasks=2"))
    jsonl(rows, [{"question": "?"}])
    with pytest.raises(QuintainError, match="row 1: expected 'messages'"):
        read(experiment(rows))
    jsonl(rows, [*texts(6), {"question": "?"}])
    source = data(experiment(rows)).source
    assert len(source.batch(0)) == 3
    with pytest.raises(QuintainError, match="row 7: expected 'messages'"):
        source.batch(1)
