"""What a supervised server says while it comes up, and after; and how it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quintain.failure import QuintainError
from quintain.launch.supervisor import ServerSpec, Supervisor

TALKATIVE = """
import json, time
def say(**event): print(json.dumps(event), flush=True)
say(event="progress", text="coming up")
print("{ no event", flush=True)
print("[1]", flush=True)
say(event="ready", url="http://127.0.0.1:1")
say(event="progress", text="a replica is back")
time.sleep(600)
"""


def test_progress_is_reported_before_and_after_the_server_is_ready_and_the_log_keeps_everything(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(restarts=0, report=said.append)
    try:
        log = tmp_path / "server.log"
        server = supervisor.start(ServerSpec("server", lambda port: [sys.executable, "-c", TALKATIVE], log))
        assert server.url == "http://127.0.0.1:1"
        _wait_for(lambda: len(said) == 2)
    finally:
        supervisor.stop()
    assert said == ["coming up", "a replica is back"]
    assert "{ no event" in log.read_text()


STUBBORN = """
import os, pathlib, signal, sys, time
asked, release = map(pathlib.Path, sys.argv[1:])
def end(*_):
    asked.touch()
    while not release.exists(): time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print('{"event": "ready", "url": "http://127.0.0.1:1"}', flush=True)
time.sleep(600)
"""
MORTAL = """
import pathlib, sys, time
with pathlib.Path(sys.argv[1]).open("a") as started: started.write("x")
print('{"event": "ready", "url": "http://127.0.0.1:1"}', flush=True)
time.sleep(600)
"""


def test_a_server_that_dies_while_the_others_are_being_stopped_is_not_started_again(tmp_path: Path) -> None:
    asked, release, started = tmp_path / "asked", tmp_path / "release", tmp_path / "started"

    def report(text: str) -> None:  # the watcher has seen the death, and is held until the stop is under way
        _wait_for(asked.exists)

    supervisor = Supervisor(restarts=3, report=report)
    log = tmp_path / "log"
    stubborn = [sys.executable, "-c", STUBBORN, str(asked), str(release)]
    supervisor.start(ServerSpec("stubborn", lambda port: stubborn, log))
    mortal = supervisor.start(ServerSpec("mortal", lambda port: [sys.executable, "-c", MORTAL, str(started)], log))
    watcher = next(thread for thread in threading.enumerate() if thread.name == "watch mortal")
    os.kill(mortal.pid, signal.SIGKILL)
    _wait_for(lambda: mortal.restarted)
    stopping = threading.Thread(target=supervisor.stop)
    stopping.start()
    _wait_for(lambda: not watcher.is_alive() or started.read_text() != "x")
    release.touch()
    stopping.join()
    watcher.join(30)
    assert started.read_text() == "x"
    supervisor.check()


def test_nothing_is_started_once_the_run_stops(tmp_path: Path) -> None:
    supervisor = Supervisor(restarts=0, report=lambda text: None)
    supervisor.stop()
    with pytest.raises(QuintainError, match="the late one is not started: the run is stopping"):
        supervisor.start(ServerSpec("late one", lambda port: [sys.executable, "-c", TALKATIVE], tmp_path / "log"))


WAITS = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
while not other.exists(): time.sleep(0.01)
print('{"event": "ready", "url": "http://127.0.0.1:1"}', flush=True)
time.sleep(600)
"""


def test_several_servers_come_up_side_by_side_and_one_that_does_not_ends_the_others(tmp_path: Path) -> None:
    def waits(mine: str, other: str) -> ServerSpec:
        command = [sys.executable, "-c", WAITS, str(tmp_path / mine), str(tmp_path / other)]
        return ServerSpec(mine, lambda port: command, tmp_path / "log")

    supervisor = Supervisor(restarts=0, report=lambda text: None)
    try:
        assert len(supervisor.start_all([waits("one", "other"), waits("other", "one")])) == 2
        broken = ServerSpec("broken", lambda port: [sys.executable, "-c", "print('no')"], tmp_path / "broken")
        with pytest.raises(QuintainError, match="the broken did not come up: no"):
            supervisor.start_all([waits("third", "never"), broken])
    finally:
        supervisor.stop()


def _wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
