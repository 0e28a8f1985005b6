"""What a person sees of a run: what goes on now, how far it is, news as they come, and a table at the end.

On a terminal progress is drawn in place; elsewhere it is plain lines, so that logs stay readable and are never silent
for long: each phase as it begins, how far it is every `EVERY_S`, and each step as it ends.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from quintain.closing import Closing
from quintain.failure import one_line
from quintain.trainers.heldout import Evaluation, Sample

EVERY_S = 10.0
"""How often plain lines say how far a phase is."""
BRIEF_S = 2.0
"""A phase of a step that is over sooner has no plain line of its own: the step's line is enough."""
BEAT_S = 1.0


class PlainProgress(Closing):
    """Says on `console` what goes on, in plain lines, for as long as it is entered. May be told by several threads."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beats, name="progress", daemon=True)
        self._phase, self._counts, self._began = "", "", 0.0
        self._said, self._wait = clock(), 0.0  # when the last line was, and how long after it the next one is due

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """The end of what goes on. May be repeated."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def say(self, text: str) -> None:
        """One line of news."""
        with self._lock:
            self._print(text)

    def phase(self, text: str, *, brief: bool = False) -> None:
        """What goes on now, until the next phase or "". A `brief` one is not worth a line before `BRIEF_S`."""
        with self._lock:
            self._phase, self._counts, self._began = text, "", self._clock()
            self._wait = BRIEF_S
            if text and not brief:
                self._print(text)

    def progress(self, done: int, total: int, more: str = "") -> None:
        """How far the phase is."""
        with self._lock:
            self._counts = f": {done} of {total}{more}"

    def beat(self) -> None:
        """Say how far the phase is, if that is due."""
        with self._lock:
            now = self._clock()
            due = now - max(self._said, self._began) >= self._wait or now - self._said >= EVERY_S
            if self._phase and due:
                self._print(f"{self._phase}{self._counts or f' ({now - self._began:.0f} s)'}")

    def _print(self, text: str) -> None:
        self._said, self._wait = self._clock(), EVERY_S
        self.console.print(text, highlight=False, soft_wrap=True)

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.beat()


class _TimeLeft(ProgressColumn):
    """Time left at the mean pace of this run's own steps."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left_s")
        return Text("–:––" if left is None else f"{_minutes(left)} left", style="cyan")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display(Closing):
    """Shows a run of `steps` steps on `console`, from its first second to its last step; or of another `unit`."""

    def __init__(self, console: Console, *, steps: int, unit: str = "step") -> None:
        self.console, self.steps = console, steps
        self._plain = None if console.is_terminal else PlainProgress(console)
        self._first, self._stepped = 0, False
        self._phase = ""
        self._began = time.monotonic()
        self._away_s = 0.0
        self._drawn = Progress(
            TextColumn(f"[bold]{unit} {{task.completed}}/{{task.total}}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            _TimeLeft(),
            TextColumn("{task.fields[phase]}", style="dim", markup=False),
            console=console,
            disable=self._plain is not None,
        )
        self._task = self._drawn.add_task("train", total=steps, completed=0, figures="", phase="", left_s=None)

    def __enter__(self) -> Self:
        (self._plain or self._drawn).__enter__()
        return self

    def close(self) -> None:
        """Nothing goes on any more: what is printed now comes after it. May be repeated."""
        if self._plain is not None:
            self._plain.close()
        self._drawn.stop()

    def say(self, text: str) -> None:
        """One line of news."""
        if self._plain is not None:
            self._plain.say(text)
        else:
            self.console.print(text, highlight=False)

    def phase(self, text: str) -> None:
        """What goes on now."""
        self._phase = text
        if self._plain is not None:
            self._plain.phase(text, brief=self._stepped)
        self._drawn.update(self._task, phase=text)

    def progress(self, done: int, total: int) -> None:
        """How far the phase is."""
        if self._plain is not None:
            self._plain.progress(done, total)
        self._drawn.update(self._task, phase=f"{self._phase}: {done} of {total}")

    def begin(self, done: int) -> None:
        """Steps begin to count now, after the `done` ones of an earlier attempt."""
        self._first, self._began, self._away_s = done, time.monotonic(), 0.0
        self._drawn.update(self._task, completed=done)

    def count(self, done: int, figures: str) -> None:
        """So many are done by now, and what they say."""
        self._drawn.update(self._task, completed=done, figures=figures, left_s=self._pace(done) * (self.steps - done))
        if self._plain is not None:
            self._plain.progress(done, self.steps, f", {figures}")

    def away(self, seconds: float) -> None:
        """Time that was not spent on steps (an evaluation)."""
        self._away_s += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (0, 1, ...) is done."""
        done, self._stepped = step + 1, True
        figure = (
            f"reward {metrics['reward']:.2f}" if "reward" in metrics else f"loss {metrics.get('loss', math.nan):.4f}"
        )
        figures = f"{figure}  {metrics['tokens_per_s']:.0f} tok/s"
        left = self._pace(done) * (self.steps - done)
        self._drawn.update(self._task, completed=done, figures=figures, left_s=left)
        if self._plain is not None:
            self.say(f"step {done}/{self.steps}  {figures}  {metrics['step_time']:.1f} s  {_minutes(left)} left")

    def _pace(self, done: int) -> float:
        """Seconds for one step, so far."""
        return (time.monotonic() - self._began - self._away_s) / max(1, done - self._first)


def before_after(before: Evaluation | None, after: Evaluation, *, shown: int) -> Sequence[Table]:
    """The tables at the end: the held-out figure, and a handful of the same questions before and after."""
    held_out = "Held-out rows" if after.metrics else "Held-out tasks"
    figure = Table("", "before", "after", title=held_out, title_justify="left")
    if after.metrics:
        for name, value in after.metrics.items():
            earlier_value = before.metrics.get(name) if before else None
            figure.add_row(name, "–" if earlier_value is None else f"{earlier_value:.4g}", Text(f"{value:.4g}", "bold"))
        return [figure]
    figure.add_row("mean reward", before.title if before else "–", Text(after.title, "bold"))
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
