"""What a supervised server says while it comes up, and after."""

from __future__ import annotations

import sys
import time
from pathlib import Path

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
        deadline = time.monotonic() + 30
        while len(said) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        supervisor.stop()
    assert said == ["coming up", "a replica is back"]
    assert "{ no event" in log.read_text()
