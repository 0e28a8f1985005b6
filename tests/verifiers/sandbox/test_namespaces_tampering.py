"""What an earlier command of a session has planted costs later ones, never the host and never the sandbox."""

from __future__ import annotations

import asyncio

import pytest

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

from . import leftovers

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLANTED = {
    "a pipe": "import os; os.mkfifo('main2.py')",
    "a link to itself": "import os; os.symlink('main2.py', 'main2.py')",
    "a link to the system": "import os; os.symlink('/etc/passwd', 'main2.py')",
    "a link to a device": "import os; os.symlink('/dev/full', 'main2.py')",
    "a file without permissions": "import os; open('main2.py', 'w'); os.chmod('main2.py', 0)",
}
BLOCKED = {
    "a folder": "import os; os.mkdir('main2.py')",
    "a folder that is closed": "import os; os.chmod('.', 0)",
    "no folder": "import os, shutil; shutil.rmtree('/box/work'); open('/box/work', 'w')",
    "a full disk": "import os\ntry:\n    with open('big', 'wb', 0) as f:\n        while True: f.write(bytes(4096))\n"
    "except OSError: pass",
    "no more files": "try:\n    for i in range(10**6): open(f'f{i}', 'w')\nexcept OSError: pass",
}
BOX = Limits(workdir_bytes=4 << 20, inodes=200)


@pytest.mark.parametrize("name", PLANTED)
async def test_a_file_of_ours_replaces_what_was_planted_in_its_place(sandbox: NamespaceSandbox, name: str) -> None:
    async with await sandbox.open(limits=BOX) as session:
        assert (await session.run(Program.python(PLANTED[name]))).status is Status.OK
        done = await session.run(Program.python("print(open('/etc/passwd').read()[:5])", name="main2.py"))
        assert (done.status, done.stdout) == (Status.OK, b"root:\n"), done


@pytest.mark.parametrize("name", BLOCKED)
async def test_a_file_that_cannot_be_written_is_the_sessions_own_fault(sandbox: NamespaceSandbox, name: str) -> None:
    async with await sandbox.open(limits=BOX) as session:
        assert (await session.run(Program.python(BLOCKED[name]))).status is Status.OK
        done = await session.run(Program.python("print(1)" + " " * 10_000, name="main2.py"), limits=BOX)
        assert (done.status, done.exit) == (Status.RUNTIME_ERROR, 126), done
        assert b"cannot run the program" in done.stderr
    assert (await sandbox.run(Program.python("print(1)"))).stdout == b"1\n"


async def test_what_a_command_leaves_running_cannot_touch_the_next_one(sandbox: NamespaceSandbox) -> None:
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True:\n"
        "        with open('/box/work/main2.py', 'w') as f: f.write('print(666)')\n"
    )
    async with await sandbox.open() as session:
        for _ in range(10):
            assert (await session.run(Program.python(daemon))).status is Status.OK
            done = await session.run(Program.command("python3", "main2.py"), files={"main2.py": b"print(1)"})
            assert done.stdout == b"1\n"


async def test_files_count_as_memory(sandbox: NamespaceSandbox) -> None:
    source = (
        "import os\nfor i in range(10**6):\n    with open(f'/dev/shm/{i}', 'wb', 0) as f: f.write(bytes(1 << 20))\n"
    )
    limits = Limits(memory_bytes=64 << 20, workdir_bytes=1 << 40, file_bytes=1 << 40)
    done = await sandbox.run(Program.python(source), limits=limits)
    assert done.status in (Status.MEMORY_LIMIT, Status.RUNTIME_ERROR), "the kernel ends it, or its disk is full"
    if {each.name: each.held for each in await sandbox.protections()}["memory of all processes"]:
        assert done.peak_bytes < 128 << 20


@pytest.mark.parametrize(
    ("files", "limits", "reason"),
    [
        ({f"{number}": b"" for number in range(50)}, Limits(inodes=40), "limit of 40 inodes"),
        ({"/".join("a" * 50): b""}, Limits(inodes=40), "limit of 40 inodes"),
        ({f"{number}": b"x" for number in range(50)}, Limits(workdir_bytes=40 * 4096), "whole pages"),
    ],
)
async def test_files_that_cannot_fit_are_refused_beforehand(
    sandbox: NamespaceSandbox, files: dict[str, bytes], limits: Limits, reason: str
) -> None:
    with pytest.raises(QuintainError, match=reason):
        await sandbox.run(Program.python("0"), files=files, limits=limits)


async def test_limits_beyond_what_the_kernel_counts_are_no_limits(sandbox: NamespaceSandbox) -> None:
    most = (1 << 62) - 1
    limits = Limits(
        wall_s=1e12, cpu_s=1e12, memory_bytes=most, output_bytes=most, processes=most, open_files=most,
        file_bytes=most, inodes=most, stack_bytes=most, workdir_bytes=1 << 40,
    )  # fmt: skip
    done = await sandbox.run(Program.python("print(1)"), limits=limits)
    assert (done.status, done.stdout) == (Status.OK, b"1\n"), done


async def test_runs_of_many_callers_leave_nothing_behind(sandbox: NamespaceSandbox) -> None:
    sources = [
        "print(1)", "1/0", "while True: pass", "import os\nos.fork()\nprint(1)", "x = bytearray(1 << 40)",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
    ]  # fmt: skip
    runs = [
        sandbox.run(Program.python(sources[number % len(sources)]), limits=Limits(wall_s=0.2)) for number in range(60)
    ]
    done = await asyncio.gather(*runs)
    assert Status.INFRA_ERROR not in {each.status for each in done}
    assert sandbox.zygote_pid is not None
    assert leftovers.of_zygote(sandbox.zygote_pid) == []
