"""What is shown of a run where nothing can be drawn in place."""

from __future__ import annotations

import io
import os
import re
import threading

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from quintain.console import console_for
from quintain.launch.display import BRIEF_S, EVERY_S, Display, PlainProgress

SILENCE_S = 15.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def test_a_phase_is_said_at_once_and_then_how_far_it_is() -> None:
    out, clock = io.StringIO(), Clock()
    lines = PlainProgress(Console(file=out), clock=clock)
    lines.phase("held-out before training")
    assert told(out) == ["held-out before training"]
    lines.progress(40, 200)
    lines.beat()
    assert len(told(out)) == 1
    clock.now = EVERY_S
    lines.beat()
    assert told(out)[1:] == ["held-out before training: 40 of 200"]


def test_a_brief_phase_is_said_once_it_is_not_brief() -> None:
    out, clock = io.StringIO(), Clock()
    lines = PlainProgress(Console(file=out), clock=clock)
    lines.phase("publishing version 1", brief=True)
    lines.phase("sampling for step 2", brief=True)
    lines.progress(3, 64)
    clock.now = BRIEF_S
    lines.beat()
    assert told(out) == ["sampling for step 2: 3 of 64"]


def test_a_phase_that_counts_nothing_says_how_long_it_takes() -> None:
    out, clock = io.StringIO(), Clock()
    lines = PlainProgress(Console(file=out), clock=clock)
    lines.phase("training step 1")
    clock.now = EVERY_S
    lines.beat()
    assert told(out) == ["training step 1", f"training step 1 ({EVERY_S:.0f} s)"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["phase", "brief", "progress", "news", "nothing"]), st.floats(0.0, 60.0)), min_size=1
    )
)
def test_whatever_happens_the_lines_are_never_silent_for_long(events: list[tuple[str, float]]) -> None:
    out, clock = io.StringIO(), Clock()
    lines = PlainProgress(Console(file=out), clock=clock)
    lines.phase("first")
    seen, last = 1, 0.0
    for what, lasts in events:
        match what:
            case "phase" | "brief":
                lines.phase("next", brief=what == "brief")
            case "progress":
                lines.progress(1, 2)
            case "news":
                lines.say("news")
        until = clock.now + lasts
        while clock.now < until:
            if len(told(out)) > seen:
                seen, last = len(told(out)), clock.now
            assert clock.now - last <= SILENCE_S
            clock.now += 1.0
            lines.beat()


def test_plain_lines_come_by_themselves_while_the_caller_is_busy() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as out:
        with PlainProgress(Console(file=out)) as lines:
            lines.phase("loading", brief=True)
            assert re.fullmatch(r"loading \(\d+ s\)\n", pipe.readline())
        assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=60))
@example("“[/INST] [bold]x[/] [/__w/gloo/pair.cc:537]” :one:")
def test_what_is_said_is_printed_as_it_is_whatever_it_quotes(text: str) -> None:
    out = io.StringIO()
    Display(console_for(file=out, width=1000), steps=1).say(f"said: {text}.")
    assert out.getvalue() == f"said: {text}.\n"


def test_a_display_may_be_closed_before_it_is_left_and_shows_each_step_once() -> None:
    out = io.StringIO()
    with Display(Console(file=out), steps=2) as display:
        display.begin(0)
        display.phase("sampling for step 1")
        display.step(0, {"reward": 0.5, "tokens_per_s": 10.0, "step_time": 3.0})
        display.phase("sampling for step 2")
        display.step(1, {"reward": 0.25, "tokens_per_s": 10.0, "step_time": 3.0})
        display.close()
    assert [line.split("  ")[:2] for line in told(out)] == [
        ["sampling for step 1"],
        ["step 1/2", "reward 0.50"],
        ["step 2/2", "reward 0.25"],
    ]
