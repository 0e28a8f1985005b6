"""No worker outlives its pool, however the process that had the pool ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run in the background inherits it ignored
sys.path.insert(0, {folder!r})
from quintain.verifiers.workers.pool import WorkerPool

async def main():
    pool = WorkerPool("pool_checks:check", size=2)
    hanging = asyncio.create_task(pool.run([{{"do": "spin"}}] * 2, deadline_s=3600.0))
    while len(pool.worker_pids) < 2:
        await asyncio.sleep(0.01)
    print("up", flush=True)
    {then}
    await hanging

asyncio.run(main())
"""


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A program with a pool of two workers, once they spin; then it does what the parameter says."""
    program = PROGRAM.format(folder=str(Path(__file__).parent), then=request.param)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) == 3, "a zygote and two workers"
    return found


@pytest.mark.parametrize("start", ["pass"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_killing_of_its_parent(start: subprocess.Popen[str], number: signal.Signals) -> None:
    children = family(start)
    start.send_signal(number)
    start.wait(timeout=30)
    left = psutil.wait_procs(children, timeout=30)[1]
    assert left == []


@pytest.mark.parametrize("start", ["import os; os._exit(0)", "raise SystemExit(1)"], indirect=True)
def test_no_worker_outlives_a_parent_that_forgets_to_close(start: subprocess.Popen[str]) -> None:
    start.wait(timeout=30)
    mine = f"{start.pid}"
    zygotes = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == mine]
    assert psutil.wait_procs(zygotes, timeout=30)[1] == []


@pytest.mark.parametrize("start", ["pass"], indirect=True)
def test_no_worker_outlives_the_killing_of_its_zygote(start: subprocess.Popen[str]) -> None:
    children = family(start)
    zygote = next(child for child in children if child.ppid() == start.pid)
    workers = [child for child in children if child.ppid() == zygote.pid]
    zygote.kill()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


@pytest.mark.parametrize("start", ["pass"], indirect=True)
def test_the_workers_are_in_the_process_group_of_their_parent(start: subprocess.Popen[str]) -> None:
    assert {os.getpgid(child.pid) for child in family(start)} == {os.getpgid(start.pid)}
