"""Children end with their launcher, whatever either of them is doing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quintain.failure import QuintainError
from quintain.lifeline import LIFELINE_ENV, Lifeline, hold_lifeline, inherited

HOLD = "from quintain.lifeline import hold_lifeline; print(hold_lifeline(grace_s=0.5), flush=True)\n"
GUARD = "from quintain.lifeline import guard; guard(); import os, subprocess, time\n"
# holds the interpreter's lock for ever: no thread of this process runs again
STUCK = "import re; re.match('(a+)+$', 'a' * 60 + 'b')\n"


def launch(code: str, line: Lifeline | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(line.fd,) if line else (),
        env=os.environ | (line.environ() if line else {}),
        process_group=0,
    )


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], 60)[0]
    return child.stdout.readline().strip()


def ends(pid: int, within_s: float = 60.0) -> bool:
    """Whether the process ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    ("on_sigterm", "status"),
    [("lambda *_: sys.exit(7)", 7), ("signal.SIG_DFL", -signal.SIGTERM), ("signal.SIG_IGN", 1)],
    ids=["tidies up", "just ends", "does not listen"],
)
def test_a_child_that_holds_its_lifeline_is_asked_to_end_and_then_ended(on_sigterm, status):
    line = Lifeline()
    setup = f"import signal, sys; signal.signal(signal.SIGTERM, {on_sigterm})\n"
    child = launch(setup + HOLD + "while True: pass", line)
    assert said(child) == "True"
    assert child.poll() is None
    line.close()
    assert ends(child.pid)
    assert child.wait(60) == status


def test_a_process_without_a_lifeline_holds_none():
    assert said(launch(HOLD, None)) == "False"


@pytest.mark.parametrize("body", [STUCK, "time.sleep(1000)\n"], ids=["stuck", "asleep"])
def test_a_guarded_process_and_all_its_children_end_with_the_lifeline(body):
    line = Lifeline()
    child = launch(
        GUARD + "p = subprocess.Popen(['sleep', '1000']); print(os.getpid(), p.pid, flush=True)\n" + body, line
    )
    pids = [int(pid) for pid in said(child).split()]
    line.close()
    assert all(ends(pid) for pid in [*pids, child.pid])
    child.wait(60)


def test_a_guarded_process_that_ends_takes_its_children_with_it():
    child = launch(GUARD + "p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True)\n", Lifeline())
    orphan = int(said(child))
    assert ends(orphan)
    assert ends(child.pid)
    child.wait(60)


@pytest.mark.parametrize("victim", ["guard", "guarded", "group"])
def test_killing_any_part_of_a_guarded_process_ends_the_guarded_one(victim):
    child = launch(GUARD + "print(os.getpid(), flush=True)\ntime.sleep(1000)\n", Lifeline())
    guarded = int(said(child))
    if victim == "group":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        os.kill(child.pid if victim == "guard" else guarded, signal.SIGKILL)
    assert ends(guarded)
    assert ends(child.pid)
    child.wait(60)


def test_a_grandchild_does_not_see_the_lifeline():
    line = Lifeline()
    code = HOLD + f"import os, subprocess\nprint(os.environ.get('{LIFELINE_ENV}'), flush=True)\n"
    code += (
        "print(subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, text=True).stdout.count('pipe'))\n"
    )
    child = launch(code, line)
    assert said(child) == "True"
    assert said(child) == "None"
    assert said(child) == "2"  # its own standard output and error, captured, and nothing else
    child.wait(60)
    line.close()


@pytest.mark.parametrize("fd", ["17000", "nonsense", "-1", str(os.open(os.devnull, os.O_RDONLY))])
def test_what_is_no_pipe_is_refused(monkeypatch, fd):
    monkeypatch.setenv(LIFELINE_ENV, fd)
    with pytest.raises(QuintainError, match=r"the lifeline must be an open pipe, but descriptor .* is none"):
        inherited()


def test_closing_a_lifeline_twice_is_harmless():
    line = Lifeline()
    line.close()
    line.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(line.fd)


def test_holding_nothing_starts_no_thread(monkeypatch):
    monkeypatch.delenv(LIFELINE_ENV, raising=False)
    before = len(list(Path("/proc/self/task").iterdir()))
    assert hold_lifeline() is False
    assert len(list(Path("/proc/self/task").iterdir())) == before
