"""What a run leaves behind: `metrics.jsonl`, `summary.json` and the reward curve.

Invariants: `metrics.jsonl` has one line per step and per evaluation; a run that goes on from a checkpoint first drops
the lines of the steps it will do again, so that no step is there twice. Any figure may be missing (no verdicts, a loss
that is not finite): it is null, and nothing that reads the file needs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quintain.failure import QuintainError
from quintain.files import write_whole
from quintain.trainers.heldout import Evaluation


class MetricsLog:
    """Appends to `metrics.jsonl`. `from_step` drops what an earlier attempt wrote for later steps.

    An evaluation belongs to the weights it saw: that of step n comes before training step n and is kept at n.
    """

    def __init__(self, path: Path, *, from_step: int = 0) -> None:
        self._path = path
        kept = (
            [row for row in read_metrics(path) if row["step"] < from_step + (row["kind"] == "eval")]
            if from_step
            else []
        )
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line. QuintainError where the disk refuses."""
        figures = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"kind": kind, "step": step, **figures}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise QuintainError(f"cannot write {self._path}: {error.strerror}; free space, then --resume") from None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that a crash cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def first_evaluation(path: Path) -> Evaluation | None:
    """The evaluation before training as `metrics.jsonl` has it, without its samples."""
    for row in read_metrics(path):
        if row["kind"] == "eval" and row["step"] == 0:
            metrics = {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_") and v is not None}
            return Evaluation(0, row["heldout"], row["verified"], row["failed"], row["elapsed_s"], (), metrics)
    return None


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`, whole or not at all."""
    write_whole(path, json.dumps(dict(summary), indent=2) + "\n")


def draw_curve(metrics: Path, picture: Path, *, title: str) -> None:
    """Draw reward, or loss on a data set, in training and held out over the steps into the PNG `picture`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(read_metrics(metrics))
    name = "reward" if any("reward" in row for row in rows) else "loss"
    steps = [(row["step"] + 1, row[name]) for row in rows if row["kind"] == "train" and row.get(name) is not None]
    evals = [(row["step"], row["heldout"]) for row in rows if row.get("heldout") is not None]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        axes.plot(*zip(*steps, strict=True), color="#9db4c8", linewidth=1.0, label=f"training {name}")
    if evals:
        axes.plot(*zip(*evals, strict=True), color="#b3261e", linewidth=2.0, marker="o", label="held-out")
        for step, value in {evals[0], evals[-1]}:
            axes.annotate(
                f"{value:.0%}" if name == "reward" else f"{value:.3g}",
                (step, value),
                textcoords="offset points",
                xytext=(0, 8),
                ha="center",
            )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"mean {name}")
    if name == "reward":
        axes.set_ylim(-0.02, 1.08)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)
    if steps or evals:
        axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(picture, dpi=150)
