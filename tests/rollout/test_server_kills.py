"""A client that is killed in the middle of a stream loses nothing: whoever has its cursor goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from quintain.codec import unpack
from quintain.rollout.client import RolloutClient
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.wire import RunRequest
from quintain.trajectory import Group

from ..fake_engine import FakeEngine
from .serving import served

_CLIENT = """
import json, sys
from quintain.rollout.client import RolloutClient
url, run = sys.argv[1:]
with RolloutClient(url) as client:
    for cursor, group in client.groups(run):
        print(json.dumps([cursor, group.index]), flush=True)
        if cursor == 5:
            sys.stdin.read()  # until it is killed
"""

_WRITER = """
import asyncio, sys
from pathlib import Path
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.trajectory import Ending, Trajectory

async def main():
    sessions = FinishedSessions(Path(sys.argv[1]))
    for n in range(10**6):
        await sessions.append(Trajectory(str(n), "g", "t", n, 0, 0, (), Ending.TERMINATED, float(n)))
        print(n, flush=True)

asyncio.run(main())
"""


_FULL = """
import asyncio, resource, sys
from pathlib import Path
from quintain.failure import FailureError
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.trajectory import Ending, Trajectory

def session(n, length):
    return Trajectory("x" * length, "g", "t", n, 0, 0, (), Ending.TERMINATED, 1.0)

async def main():
    sessions = FinishedSessions(Path(sys.argv[1]))
    await sessions.append(session(0, 100))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        await sessions.append(session(1, 5000))
    except FailureError as error:
        print(error.failure.kind, error.failure.retryable)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await sessions.append(session(2, 10))

asyncio.run(main())
"""


def test_a_client_killed_in_mid_stream_is_replaced_by_one_that_has_its_cursor(tmp_path: Path) -> None:
    engine = FakeEngine(words=128, token_s=0.002)
    with served(tmp_path, engine=engine, max_concurrency=4) as url, RolloutClient(url) as client:
        run = client.submit(RunRequest("heldout", tuple(range(60)), samples=2)).run
        command = [sys.executable, "-c", _CLIENT, url, run]
        killed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert killed.stdout is not None
        seen = [json.loads(killed.stdout.readline()) for _ in range(5)]
        killed.kill()
        assert killed.communicate()[0] == ""
        cursor = seen[-1][0]
        rest = [[at, group.index] for at, group in client.groups(run, cursor)]
        assert [at for at, _ in [*seen, *rest]] == list(range(1, 61))
        assert sorted(index for _, index in [*seen, *rest]) == list(range(60))


def test_a_stream_that_breaks_off_is_taken_up_again_by_the_client_itself(tmp_path: Path) -> None:
    engine = FakeEngine(words=128, token_s=0.002)
    with served(tmp_path, engine=engine, max_concurrency=4) as url, RolloutClient(url) as client:
        run = client.submit(RunRequest("heldout", tuple(range(40)))).run
        cursors = []
        for cursor, _ in client.groups(run):
            cursors.append(cursor)
            if cursor in (3, 11):
                for connection in client._caller._sync._transport._pool.connections:  # type: ignore[attr-defined]
                    connection._connection._network_stream._sock.close()
        assert cursors == list(range(1, 41))


def test_what_was_acknowledged_outlives_a_killed_server_and_keeps_its_cursor(tmp_path: Path) -> None:
    path = tmp_path / "sessions.bin"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(50):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 50 + len([line for line in writer.stdout if line.endswith("\n")])
    writer.wait()
    with FinishedSessions(path) as sessions:
        assert sessions.count >= acknowledged
        before = [sessions.get(place) for place in range(sessions.count)]
    os.truncate(path, path.stat().st_size - 3)  # as if it had been killed in the middle of a record
    with FinishedSessions(path) as sessions:
        assert [sessions.get(place) for place in range(sessions.count)] == before[:-1]


def test_a_full_disk_refuses_a_session_and_harms_none_before_or_after_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.bin"
    done = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "resource False\n"
    with FinishedSessions(path) as sessions:
        groups = [unpack(sessions.get(place) or b"", Group) for place in range(sessions.count)]
    assert [group.index for group in groups] == [0, 2]
