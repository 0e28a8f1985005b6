"""The process sandbox: no walls, said so, and the same statuses as the others."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.process import ProcessSandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare() -> AsyncIterator[ProcessSandbox]:
    async with ProcessSandbox(unsafe=True, slots=2) as sandbox:
        yield sandbox


@pytest.mark.parametrize("unsafe", [False, None, 1, "true"])
async def test_it_does_not_start_unless_it_is_called_unsafe(unsafe: object) -> None:
    with pytest.raises(QuintainError, match="unsafe: true"):
        ProcessSandbox(unsafe=unsafe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "limits", "status", "output"),
    [
        ("print(int(input()) * 2)", Limits(), Status.OK, b"42\n"),
        ("raise SystemExit(3)", Limits(), Status.RUNTIME_ERROR, b""),
        ("while True: pass", Limits(wall_s=0.3), Status.TIMEOUT, b""),
        ("while True: print(end='x')", Limits(output_bytes=9), Status.OUTPUT_LIMIT, b"x" * 9),
        ("x = bytearray(1 << 40)", Limits(), Status.MEMORY_LIMIT, b""),
        ("import helper; print(helper.x, open('a/b').read())", Limits(), Status.OK, b"7 c\n"),
        ("import time; time.sleep(1e9)", Limits(wall_s=0.3), Status.TIMEOUT, b""),
        ("import os\nif os.fork() == 0:\n    while True: pass\nprint(1)", Limits(wall_s=20), Status.OK, b"1\n"),
    ],
)
async def test_programs_end_as_they_should(
    bare: ProcessSandbox, source: str, limits: Limits, status: Status, output: bytes
) -> None:
    files = {"helper.py": b"x = 7", "a/b": b"c"}
    done = await bare.run(Program.python(source), stdin=b"21\n", files=files, limits=limits)
    assert (done.status, done.stdout) == (status, output), done


async def test_commands_of_a_session_share_their_folder_which_is_removed(
    bare: ProcessSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with await bare.open({"a": b"1"}) as session:
        await session.run(Program.command("sh", "-c", "cat a > b; pwd"))
        done = await session.run(Program.python("print(open('b').read(), end=' '); import os; print(os.getcwd())"))
        assert done.status is Status.OK
        content, folder = done.stdout.decode().split()
        assert (content, os.path.dirname(folder)) == ("1", str(tmp_path))
        running = await session.start(Program.python("print(int(input()) + 1, flush=True); input()"))
        running.stdin.write(b"1\n")
        assert await running.stdout.readline() == b"2\n"
        with pytest.raises(QuintainError, match="one command at a time"):
            await session.run(Program.python("1"))
    assert (await running.wait()).status is Status.RUNTIME_ERROR
    assert os.listdir(tmp_path) == []


async def test_a_cancelled_run_is_killed(bare: ProcessSandbox) -> None:
    runs = [asyncio.create_task(bare.run(Program.python("while True: pass"))) for _ in range(3)]
    await asyncio.sleep(0)
    for run in runs:
        run.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*runs, return_exceptions=True))
    assert (await bare.run(Program.python("print(1)"))).stdout == b"1\n"


async def test_it_promises_nothing_that_it_does_not_hold(bare: ProcessSandbox) -> None:
    held = {each.name for each in await bare.protections() if each.held}
    assert held == {"wall time", "memory of one process"}
