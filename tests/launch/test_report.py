"""What a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

from quintain.launch.report import MetricsLog, draw_curve, read_metrics


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
