"""What a person sees of a run: a live line of progress, news as they come, and a table at the end.

On a terminal the progress is drawn in place; elsewhere each step is one plain line, so logs stay readable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from quintain.failure import one_line
from quintain.trainers.heldout import Evaluation, Sample


class _TimeLeft(ProgressColumn):
    """Time left at the mean pace of this run's own steps."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left_s")
        return Text("–:––" if left is None else f"{_minutes(left)} left", style="cyan")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display:
    """Shows a run of `steps` steps on `console`."""

    def __init__(self, console: Console, *, steps: int, done: int = 0) -> None:
        self.console, self.steps, self._first = console, steps, done
        self._live = console.is_terminal
        self._began = time.monotonic()
        self._away_s = 0.0
        self._progress = Progress(
            TextColumn("[bold]step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            _TimeLeft(),
            TextColumn("[dim]{task.fields[phase]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("train", total=steps, completed=done, figures="", phase="", left_s=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line of news."""
        self.console.print(text, highlight=False)

    def phase(self, text: str) -> None:
        """What is going on now."""
        self._progress.update(self._task, phase=text)

    def away(self, seconds: float) -> None:
        """Time that was not spent on steps (an evaluation)."""
        self._away_s += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (0, 1, ...) is done."""
        done = step + 1
        pace = (time.monotonic() - self._began - self._away_s) / max(1, done - self._first)
        figures = f"reward {metrics.get('reward', float('nan')):.2f}  {metrics['tokens_per_s']:.0f} tok/s"
        left = pace * (self.steps - done)
        self._progress.update(self._task, completed=done, figures=figures, left_s=left)
        if not self._live:
            self.say(f"step {done}/{self.steps}  {figures}  {metrics['step_time']:.1f} s  {_minutes(left)} left")


def before_after(before: Evaluation | None, after: Evaluation, *, shown: int) -> Sequence[Table]:
    """The tables at the end: the held-out figure, and a handful of the same questions before and after."""
    figure = Table(title="Held-out tasks", title_justify="left")
    for column in ("", "before", "after"):
        figure.add_column(column)
    figure.add_row("mean reward", before.title if before else "–", f"[bold]{after.title}")
    figure.add_row("verified", str(before.verified) if before else "–", str(after.verified))
    figure.add_row("failed", str(before.failed) if before else "–", str(after.failed))
    tables = [figure]
    if shown:
        samples = Table(title="Sample answers", title_justify="left")
        for column in ("question", "before", "after"):
            samples.add_column(column, overflow="fold", max_width=44)
        earlier = {sample.task: sample for sample in before.samples} if before else {}
        for sample in pick(after.samples, shown):
            samples.add_row(Text(sample.prompt), _answer(earlier.get(sample.task)), _answer(sample))
        tables.append(samples)
    return tables


def pick(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    """`count` of the samples, evenly spread."""
    stride = max(1, len(samples) // max(1, count))
    return samples[::stride][:count]


def _answer(sample: Sample | None) -> Text:
    if sample is None:
        return Text("–")
    mark = ("✓ ", "green") if sample.reward >= 1.0 else ("✗ ", "red")
    return Text.assemble(mark, one_line(sample.answer) or "(nothing)")
