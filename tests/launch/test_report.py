"""What a run leaves behind."""

from __future__ import annotations

import io
import json
import math
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from quintain.config import parse_config
from quintain.launch.display import Display
from quintain.launch.report import MetricsLog, draw_curve, read_metrics
from quintain.launch.run_folder import RunFolder
from quintain.launch.session import TrainingRun
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import Evaluation
from quintain.trainers.loop import Result


def test_a_resumed_run_drops_the_steps_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("eval", 0, {"heldout": 0.1})
    for step in range(4):
        log.write("train", step, {"reward": step})
    log.write("eval", 4, {"heldout": 0.2})
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # a crash in mid-line
    MetricsLog(path, from_step=2).write("train", 2, {"reward": 9})
    rows = [(row["kind"], row["step"], row.get("reward")) for row in read_metrics(path)]
    assert rows == [("eval", 0, None), ("train", 0, 0), ("train", 1, 1), ("train", 2, 9)]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "m.jsonl").write("train", 0, {"reward": 1})
    MetricsLog(tmp_path / "m.jsonl")
    assert list(read_metrics(tmp_path / "m.jsonl")) == []


def test_the_curve_is_a_picture_of_both_lines(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": i, "reward": i / 10} for i in range(10)]
    rows += [{"kind": "eval", "step": 0, "heldout": 0.0}, {"kind": "eval", "step": 10, "heldout": 1.0}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curve(tmp_path / "m.jsonl", tmp_path / "c.png", title="t")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    from matplotlib.image import imread

    pixels = imread(tmp_path / "c.png")
    red = (pixels[..., 0] > 0.6) & (pixels[..., 1] < 0.3) & (pixels[..., 2] < 0.3)
    assert red.sum() > 500  # the held-out line was drawn


@pytest.mark.parametrize("heldout", list(product((None, 0.25), repeat=2)), ids=str)
@pytest.mark.parametrize("reward", [None, 0.5])
def test_a_curve_is_drawn_whichever_evaluations_and_steps_had_no_verdict(
    tmp_path: Path, heldout: tuple[float | None, ...], reward: float | None
) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    for step, value in enumerate(heldout):
        log.write("eval", step, {"heldout": value})
        log.write("train", step, {"reward": reward} if step else {})
    draw_curve(tmp_path / "m.jsonl", tmp_path / "c.png", title="t")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_is_not_finite_is_null_and_every_line_is_json(tmp_path: Path) -> None:
    figures = {"loss": math.nan, "grad_norm": math.inf, "reward": 0.5, "rows_trained": 3}
    MetricsLog(tmp_path / "m.jsonl").write("train", 0, figures)
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"kind": "train", "step": 0, "loss": None, "grad_norm": None, "reward": 0.5, "rows_trained": 3}


def test_a_resumed_run_shows_the_figures_from_before_training(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = MetricsLog(run.metrics)
    log.write("eval", 0, {"heldout": 0.375, "verified": 31, "failed": 1, "elapsed_s": 2.0})
    log.write("train", 0, {"reward": 0.5})
    shown = io.StringIO()
    text = "model: {path: x}\nenvironment: {name: math}\nevaluation: {samples_shown: 0}"
    session = TrainingRun(
        parse_config(text), run, Display(Console(file=shown, width=80), steps=1), lambda: None, [32], 0.0
    )
    after = Evaluation(1, 0.75, 32, 0, 2.0, ())
    summary = session._conclude(Result(Progress(1, 1, 8, 3.0, 0.375), None, after))
    assert summary["heldout_before"] == 0.375
    rows = [line.strip("│ \n").split() for line in shown.getvalue().splitlines()]
    cells = {" ".join(word for word in row if word != "│") for row in rows}
    assert {"mean reward 37.5% 75.0%", "verified 31 32", "failed 1 0"} <= cells
