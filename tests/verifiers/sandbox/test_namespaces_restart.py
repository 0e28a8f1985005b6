"""The sandbox outlives its processes, and nothing outlives the sandbox."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

from . import leftovers

Make = Callable[..., NamespaceSandbox]
PRINT = Program.python("print(1)")


def keepers(sandbox: NamespaceSandbox) -> list[psutil.Process]:
    assert sandbox.zygote_pid is not None
    return psutil.Process(sandbox.zygote_pid).children()


async def changed(what: Callable[[], bool]) -> None:
    """Return when `what` is true of processes outside, about which nobody tells us."""
    while not what():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def programs(sandbox: NamespaceSandbox) -> list[psutil.Process]:
    """What runs in the sandbox below its keepers now: of each program itself and its init."""
    try:
        found = [child for keeper in keepers(sandbox) for child in keeper.children() if child.num_threads() == 1]
        return [child for child in found if child.ppid() and child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:  # it ended while we looked
        return []


async def running_programs(sandbox: NamespaceSandbox, count: int) -> list[psutil.Process]:
    """The programs that run in the sandbox, once there are `count`."""
    await changed(lambda: len(programs(sandbox)) >= 2 * count)
    return programs(sandbox)


async def test_a_killed_zygote_comes_back_and_the_run_is_done_again(make: Make) -> None:
    async with make() as sandbox:
        first = sandbox.zygote_pid
        runs = [asyncio.create_task(sandbox.run(Program.python("import time; time.sleep(1); print(1)"))) for _ in "ab"]
        programs = await running_programs(sandbox, 2)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        done = await asyncio.gather(*runs)
        assert [each.stdout for each in done] == [b"1\n", b"1\n"]
        assert sandbox.zygote_pid != first
        assert psutil.wait_procs(programs, timeout=10)[1] == []


async def test_a_run_whose_zygote_dies_twice_is_an_infrastructure_error(make: Make) -> None:
    async with make(slots=1) as sandbox:
        run = asyncio.create_task(
            sandbox.run(Program.python("import time; time.sleep(1000)"), limits=Limits(wall_s=60))
        )
        for _ in range(2):
            await running_programs(sandbox, 1)
            assert sandbox.zygote_pid is not None
            pid = sandbox.zygote_pid
            os.kill(pid, signal.SIGKILL)
            await changed(lambda pid=pid: sandbox.zygote_pid not in (pid, None) or run.done())
        done = await run
        assert done.status is Status.INFRA_ERROR
        assert done.failure is not None
        assert done.failure.retryable
        assert (await sandbox.run(PRINT)).stdout == b"1\n"


async def test_a_killed_keeper_costs_its_own_slot_only(make: Make) -> None:
    async with make() as sandbox:
        sessions = [await sandbox.open() for _ in range(2)]
        talks = [await session.start(Program.python("print('up', flush=True); print(input())")) for session in sessions]
        for talk in talks:
            assert await talk.stdout.readline() == b"up\n"
        zygote = sandbox.zygote_pid
        keepers(sandbox)[0].kill()
        finished, _ = await asyncio.wait(
            [asyncio.create_task(talk.wait()) for talk in talks], return_when=asyncio.FIRST_COMPLETED
        )
        assert [task.result().status for task in finished] == [Status.INFRA_ERROR]
        survivor = next(talk for talk in talks if not talk._finished.done())  # type: ignore[attr-defined]
        survivor.stdin.write(b"still here\n")
        assert await survivor.stdout.readline() == b"still here\n"
        assert (await survivor.wait()).status is Status.OK
        lost = next(session for session, talk in zip(sessions, talks, strict=True) if talk is not survivor)
        assert (await lost.run(PRINT)).status is Status.INFRA_ERROR, "its files are gone: it must not go on"
        with pytest.raises(FailureError):
            await lost.start(PRINT)
        for session in sessions:
            await session.close()
        assert [(await sandbox.run(PRINT)).stdout for _ in range(4)] == [b"1\n"] * 4
        assert sandbox.zygote_pid == zygote


async def test_nobody_is_told_of_a_keeper_that_died_when_its_run_was_given_up(make: Make) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with make() as sandbox:
        run = asyncio.create_task(sandbox.run(Program.python("import time; time.sleep(60)")))
        await running_programs(sandbox, 1)
        keeper = next(keeper for keeper in keepers(sandbox) if keeper.children())
        keeper.suspend()
        run.cancel()
        await asyncio.sleep(0)  # the order to end it is on its way, and will not be read
        keeper.kill()
        with pytest.raises(asyncio.CancelledError):
            await run
        del run
        assert (await sandbox.run(PRINT)).stdout == b"1\n"
    del sandbox
    gc.collect()
    assert told == []


async def test_a_stuck_keeper_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintain.verifiers.sandbox.command.OVERDUE_S", 0.1)
    async with make(slots=1) as sandbox:
        run = asyncio.create_task(sandbox.run(Program.python("print(input())"), limits=Limits(wall_s=0.3)))
        (keeper,) = keepers(sandbox)
        keeper.suspend()
        done = await run
        assert done.status in (Status.INFRA_ERROR, Status.OK, Status.RUNTIME_ERROR)
        assert (await sandbox.run(PRINT)).stdout == b"1\n"
        assert not keeper.is_running()


async def test_a_program_does_nothing_before_it_is_known_to_have_begun(make: Make) -> None:
    """Not even where its keeper, on the same core, has to wait for a turn."""
    async with make(slots=1) as sandbox, await sandbox.open() as session:
        core = min(os.sched_getaffinity(0))
        (keeper,) = keepers(sandbox)
        os.sched_setaffinity(keeper.pid, {core})
        os.sched_setscheduler(keeper.pid, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(20):
            talk = await session.start(Program.python("print('up', flush=True); input()"))
            assert await talk.stdout.readline() == b"up\n"
            await asyncio.sleep(0)  # a turn for what came before
            assert session._keeper.begun is not None  # type: ignore[attr-defined]
            talk.stdin.write(b"\n")
            assert (await talk.wait()).status is Status.OK


@pytest.mark.parametrize(("ends", "status"), [(False, Status.TIMEOUT), (True, Status.INFRA_ERROR)])
async def test_where_no_report_comes_a_program_that_lives_on_has_run_into_its_time(
    make: Make, monkeypatch: pytest.MonkeyPatch, ends: bool, status: Status
) -> None:
    monkeypatch.setattr("quintain.verifiers.sandbox.command.OVERDUE_S", 0.1)
    async with make(slots=1) as sandbox, await sandbox.open() as session:
        talk = await session.start(Program.python("print('up', flush=True); input()"), limits=Limits(wall_s=0.5))
        assert await talk.stdout.readline() == b"up\n"
        keepers(sandbox)[0].suspend()  # as if its program left it no time
        if ends:
            talk.stdin.write(b"\n")
            assert await talk.stdout.read() == b""
        assert (await talk.wait()).status is status
        assert (await session.run(PRINT)).status is Status.INFRA_ERROR, "its session is gone"


async def test_nothing_is_left_after_close(make: Make) -> None:
    before = set(os.listdir("/proc/self/fd"))
    groups = leftovers.control_groups()
    sandbox = make()
    await sandbox.start()
    runs = [asyncio.create_task(sandbox.run(Program.python("while True: pass"))) for _ in range(3)]
    await running_programs(sandbox, 2)
    assert sandbox.zygote_pid is not None
    family = [psutil.Process(sandbox.zygote_pid), *psutil.Process(sandbox.zygote_pid).children(recursive=True)]
    await sandbox.close()
    done = await asyncio.gather(*runs)
    assert {each.status for each in done} == {Status.INFRA_ERROR}
    assert [process for process in family if process.is_running()] == []
    assert leftovers.control_groups() <= groups
    assert set(os.listdir("/proc/self/fd")) == before
    await sandbox.close()
    with pytest.raises(QuintainError, match="closed"):
        await sandbox.run(PRINT)


async def test_runs_of_every_kind_leave_no_descriptor_open(make: Make) -> None:
    async with make() as sandbox:

        async def all_kinds() -> None:
            await sandbox.run(PRINT, stdin=b"x")
            await sandbox.run(Program.python("while True: print('x' * 1000)"), limits=Limits(output_bytes=10))
            await sandbox.run(Program.python("while True: pass"), limits=Limits(wall_s=0.05))
            await sandbox.run(Program.command("nothing-of-that-name"))
            with pytest.raises(QuintainError):
                await sandbox.run(PRINT, files={"../x": b""})
            cancelled = asyncio.create_task(sandbox.run(Program.python("while True: pass")))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            async with await sandbox.open() as session:
                with pytest.raises(QuintainError):
                    await session.run(PRINT, files={"big": b"x"}, limits=Limits(file_bytes=1))
                running = await session.start(Program.python("input()"))
                running.kill()
                await running.wait()

        await all_kinds()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await all_kinds()
        assert len(os.listdir("/proc/self/fd")) <= before  # fewer where an earlier test's garbage has gone


PROGRAM = """
import asyncio, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run in the background inherits it ignored
from quintain.verifiers.sandbox.interface import Program, Limits
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

async def main():
    sandbox = NamespaceSandbox(slots=2, user={user})
    await sandbox.start()
    runs = [asyncio.create_task(sandbox.run(Program.python("import os\\nos.fork()\\nwhile True: pass"))) for _ in "ab"]
    print(sandbox.zygote_pid, flush=True)
    await asyncio.gather(*runs)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_service(user: int | None, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(user=user)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as service:
        assert service.stdout is not None
        zygote = psutil.Process(int(service.stdout.readline()))
        until = time.monotonic() + 60
        while len(family := [zygote, *zygote.children(recursive=True)]) != 1 + 2 + 2 * 3:
            assert time.monotonic() < until, "a zygote, its keepers, and in each slot an init and two processes"
            time.sleep(0.01)
        service.send_signal(number)
        service.wait(timeout=30)
        assert psutil.wait_procs(family, timeout=10)[1] == []


async def test_a_python_that_will_not_do_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(QuintainError, match="does not run"):
        await NamespaceSandbox(python=str(tmp_path / "python")).start()
    with pytest.raises(QuintainError, match="no_such_module_here"):
        await NamespaceSandbox(preload=["no_such_module_here"]).start()
    with pytest.raises(QuintainError, match="at least one slot"):
        NamespaceSandbox(slots=0)


async def test_another_python_and_further_paths_can_be_read(user: int | None, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("hello")
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o005 != 0o005 and "pytest" in str(folder):
            folder.chmod(0o755)
    python = None if user is not None else sys.executable  # root's own home folder is closed to others
    async with NamespaceSandbox(
        slots=1, python=python, readable=[str(tmp_path)], preload=["decimal"], user=user
    ) as sandbox:
        source = f"import sys, os\nprint(open('{tmp_path}/data.txt').read(), 'decimal' in sys.modules, sys.prefix)\n"
        done = await sandbox.run(Program.python(source + f"open('{tmp_path}/data.txt', 'w')"))
        prefix = sys.prefix if python else "/usr"
        assert (done.stdout.decode(), done.exit) == (f"hello True {prefix}\n", 1)
        assert b"Errno" in done.stderr
        if python:
            done = await sandbox.run(Program.command(python, "-c", "import msgpack; print(msgpack.__name__)"))
            assert done.stdout == b"msgpack\n"


async def test_folders_at_the_top_lead_into_the_work_folder_of_each_session(make: Make) -> None:
    async with make(folders=["/app", "/root"]) as sandbox:
        run = Program.command("sh", "-c", "cat /app/x; mkdir root; echo y > /root/y; cat root/y; rm /app; ls -A /root")
        for _ in range(2):
            done = await sandbox.run(run, files={"app/x": b"x\n"})
            assert done.stdout == b"x\ny\ny\n"
    with pytest.raises(QuintainError, match="/usr cannot lead into the work folder: the sandbox's own files are there"):
        await make(folders=["/usr"]).start()


async def test_a_failure_to_start_is_told_and_can_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = NamespaceSandbox(slots=1)
    monkeypatch.setattr("quintain.verifiers.sandbox.handle.BOOT", "raise SystemExit('not today')")
    with pytest.raises(QuintainError, match="not today"):
        await sandbox.run(PRINT)
    monkeypatch.undo()
    assert (await sandbox.run(PRINT)).status is Status.OK
    await sandbox.close()


async def test_closing_what_never_started_is_nothing() -> None:
    await NamespaceSandbox().close()


async def test_waiting_callers_learn_that_the_sandbox_was_closed(make: Make) -> None:
    sandbox = make(slots=1)
    await sandbox.start()
    runs = [asyncio.create_task(sandbox.run(Program.python("while True: pass"))) for _ in range(3)]
    await running_programs(sandbox, 1)
    await sandbox.close()
    kinds = {each.failure.kind for each in await asyncio.gather(*runs) if each.failure is not None}
    assert kinds <= {FailureKind.CANCELLED, FailureKind.CRASHED}
    assert FailureKind.CANCELLED in kinds
