"""What programs find in the namespaces sandbox, and what their runs say of them."""

from __future__ import annotations

import asyncio
import signal

import pytest

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def output_of(sandbox: NamespaceSandbox, source: str, *args: str, stdin: bytes = b"") -> str:
    done = await sandbox.run(Program.python(source, *args), stdin=stdin)
    assert done.status is Status.OK, done
    return done.stdout.decode()


async def test_a_program_gets_its_stdin_and_its_stdout_comes_back(sandbox: NamespaceSandbox) -> None:
    done = await sandbox.run(Program.python("print(int(input()) * 2)"), stdin=b"21\n")
    assert (done.status, done.stdout, done.stderr, done.exit) == (Status.OK, b"42\n", b"", 0)


async def test_a_megabyte_goes_in_and_comes_out(sandbox: NamespaceSandbox) -> None:
    data = bytes(range(256)) * 4096
    program = Program.python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")
    done = await sandbox.run(program, stdin=data, limits=Limits(output_bytes=len(data)))
    assert done.status is Status.OK
    assert done.stdout == data


@pytest.mark.parametrize(
    ("source", "exit_code"),
    [
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('words')", 1),
        ("import sys; sys.exit(256)", 0),
        ("import os; os._exit(7)", 7),
        ("1/0", 1),
        ("import", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import threading; threading.Thread(target=lambda: 1/0).start()", 0),
    ],
)
async def test_the_exit_code_is_the_one_of_a_python_of_its_own(
    sandbox: NamespaceSandbox, source: str, exit_code: int
) -> None:
    done = await sandbox.run(Program.python(source))
    own = await sandbox.run(Program.command("python3", "main.py"), files={"main.py": source.encode()})
    assert done.exit == exit_code == own.exit
    assert done.status is own.status is (Status.OK if exit_code == 0 else Status.RUNTIME_ERROR)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    raise ValueError('x')\nf()",
        "x = (1,\n",
        "raise SystemExit('words')",
        "import sys; sys.excepthook = lambda *a: print('mine', a[0], file=sys.stderr); 1/0",
        "import warnings; warnings.warn('careful')",
    ],
)
async def test_a_traceback_is_the_one_of_a_python_of_its_own(sandbox: NamespaceSandbox, source: str) -> None:
    done = await sandbox.run(Program.python(source))
    own = await sandbox.run(Program.command("python3", "/box/work/main.py"), files={"main.py": source.encode()})
    assert done.stderr == own.stderr != b""


@pytest.mark.parametrize(
    "source",
    [
        "import sys; print(sys.argv, __name__, __file__, sys.path[0], sys.getrecursionlimit() >= 1000)",
        "import sys; print(sys.stdin.encoding, sys.stdout.encoding, sys.stderr.errors, sys.stdout.line_buffering)",
        "import atexit; atexit.register(print, 'bye'); print('hello')",
        "class A:\n    def __del__(self): print('gone')\na = A()",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()",
        "import os; print(os.environ['HOME'], os.getcwd(), sorted(os.listdir()), os.umask(0))",
        "import signal; print([signal.getsignal(s) for s in (2, 13, 15, 17)], signal.pthread_sigmask(0, []))",
        "import __main__, inspect; print(inspect.getsource(__main__))",
        "print(input() + input())",
        "import sys; print(sys.stdin.read().splitlines())",
        "print(open(0).read())",
        "import os; print(os.read(0, 100))",
        "print(open('/dev/stdin').read())",
        "import random; random.seed(1); print(random.random())",
        "import subprocess; print(subprocess.run(['cat'], capture_output=True, text=True).stdout)",
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(4) as p: print(list(p.map(abs, range(9))))",
        "import multiprocessing as m\nif __name__ == '__main__':\n    with m.Pool(2) as p: print(p.map(abs, [-1, 2]))",
        "import asyncio; print(asyncio.run(asyncio.sleep(0, 'slept')))",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x'); print(f.tell())",
        "import sqlite3; print(sqlite3.connect('a.db').execute('select 1').fetchall())",
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(990))",
        "import helper; print(helper.x)",
        "import gc; print(gc.isenabled())",
        "import os; print(os.getuid(), os.getgroups() in ([], [65534]), os.isatty(0))",
    ],
)
async def test_a_program_sees_what_it_would_see_in_a_python_of_its_own(sandbox: NamespaceSandbox, source: str) -> None:
    files = {"helper.py": b"x = 7"}
    done = await sandbox.run(Program.python(source, "a", "b"), stdin=b"one\ntwo\n", files=files)
    command = Program.command("python3", "-X", "utf8", "/box/work/main.py", "a", "b")
    own = await sandbox.run(command, stdin=b"one\ntwo\n", files=files | {"main.py": source.encode()})
    said = done.stdout.replace(b"['main.py'", b"['/box/work/main.py'")
    assert (said, done.stderr, done.exit) == (own.stdout, own.stderr, 0)


async def test_the_environment_is_the_programs_own(sandbox: NamespaceSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTAIN_TEST_SECRET", "do not tell")
    program = Program.command("env", env={"GREETING": "hi there", "PATH": "/usr/bin"})
    done = await sandbox.run(program)
    lines = set(done.stdout.decode().split("\n")) - {""}
    assert lines == {"GREETING=hi there", "PATH=/usr/bin", "HOME=/box/work", "LANG=C.UTF-8"}
    program = Program.python("import os; print(dict(os.environ))", env={"GREETING": "hi there", "PATH": "/usr/bin"})
    assert (await sandbox.run(program)).stdout.decode().count("=") == 0
    assert "do not tell" not in await output_of(sandbox, "print(open('/proc/self/environ').read())")


async def test_files_are_where_they_were_put(sandbox: NamespaceSandbox) -> None:
    files = {"a.txt": b"1", "deep/er/b.bin": b"\x00\xff"}
    program = Program.python("print(open('a.txt').read(), open('deep/er/b.bin', 'rb').read())")
    assert (await sandbox.run(program, files=files)).stdout == b"1 b'\\x00\\xff'\n"


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a/", "a\0b"])
async def test_a_file_outside_of_the_folder_is_refused(sandbox: NamespaceSandbox, path: str) -> None:
    with pytest.raises(QuintainError, match="relative path"):
        await sandbox.run(Program.python("0"), files={path: b""})


async def test_files_that_do_not_fit_are_refused(sandbox: NamespaceSandbox) -> None:
    with pytest.raises(QuintainError, match="limit is 10"):
        await sandbox.run(Program.python("0"), files={"a": b"x" * 11}, limits=Limits(file_bytes=10))
    with pytest.raises(QuintainError, match="folder is 10"):
        await sandbox.run(Program.python("0"), files={"a": b"x" * 11}, limits=Limits(workdir_bytes=10))


async def test_a_command_that_is_not_there_is_said_to_be_not_there(sandbox: NamespaceSandbox) -> None:
    done = await sandbox.run(Program.command("no-such-program", "x"))
    assert (done.status, done.exit) == (Status.RUNTIME_ERROR, 127)
    assert b"no-such-program: No such file" in done.stderr
    assert (await sandbox.run(Program.command("/etc/passwd"))).exit == 126


async def test_scripts_and_pipes_work(sandbox: NamespaceSandbox) -> None:
    done = await sandbox.run(Program.command("sh", "-c", "seq 1000000 | head -n 3 | tr '\\n' ' '; echo $?"))
    assert (done.stdout, done.stderr) == (b"1 2 3 0\n", b"")


@pytest.mark.needs_gxx
async def test_c_is_compiled_and_run_in_one_session(sandbox: NamespaceSandbox) -> None:
    source = b'#include <stdio.h>\nint main(void) { int x; scanf("%d", &x); printf("%d\\n", x * 2); return 3; }'
    async with await sandbox.open({"a.c": source}) as session:
        compiled = await session.run(Program.command("gcc", "a.c"), limits=Limits(wall_s=60, cpu_s=60))
        assert compiled.status is Status.OK, compiled
        for number in (4, 21):
            done = await session.run(Program.command("./a.out"), stdin=b"%d" % number)
            assert (done.status, done.stdout, done.exit) == (Status.RUNTIME_ERROR, b"%d\n" % (2 * number), 3)


async def test_files_of_a_session_stay_and_its_processes_do_not(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open({"first.txt": b"1"}) as session:
        done = await session.run(Program.command("sh", "-c", "echo 2 > second.txt; sleep 1000 & exit 0"))
        assert done.status is Status.OK
        listing = "import os; print(sorted(os.listdir()), sorted(p for p in os.listdir('/proc') if p.isdigit()))"
        done = await session.run(Program.python(listing, name="list.py"), files={"third.txt": b"3"})
        files, processes = done.stdout.decode().strip().split("] [")
        assert files == "['first.txt', 'list.py', 'second.txt', 'third.txt'"
        assert processes.count(",") == 0, "only the program itself"


async def test_each_command_of_a_session_has_its_own_limits(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open() as session:
        slow = await session.run(Program.python("while True: pass"), limits=Limits(wall_s=0.2))
        quick = await session.run(Program.python("print(1)"))
        assert (slow.status, quick.status) == (Status.TIMEOUT, Status.OK)


async def test_a_second_command_at_the_same_time_is_refused(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open() as session:
        running = await session.start(Program.python("input()"))
        with pytest.raises(QuintainError, match="one command at a time"):
            await session.run(Program.python("1"))
        running.kill()
        await running.wait()
    with pytest.raises(QuintainError, match="closed"):
        await session.run(Program.python("1"))


async def test_one_can_talk_with_a_program(sandbox: NamespaceSandbox) -> None:
    program = Program.python("import sys\nfor line in sys.stdin: print(int(line) + 1, flush=True)\nprint('end')")
    async with await sandbox.open() as session:
        running = await session.start(program)
        for number in (1, 41):
            running.stdin.write(b"%d\n" % number)
            await running.stdin.drain()
            assert await running.stdout.readline() == b"%d\n" % (number + 1)
        running.stdin.close()
        assert await running.stdout.read() == b"end\n"
        done = await running.wait()
        assert (done.status, done.stdout, done.exit) == (Status.OK, b"", 0)


async def test_a_program_that_is_talked_to_has_a_deadline(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open() as session:
        running = await session.start(Program.python("print(input())"), limits=Limits(wall_s=0.2))
        assert await running.stdout.read() == b""
        assert (await running.wait()).status is Status.TIMEOUT


async def test_a_session_that_is_left_ends_what_runs(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open() as session:
        running = await session.start(Program.python("import time; time.sleep(1000)"))
    assert (await running.wait()).status is Status.RUNTIME_ERROR
    assert await running.stdout.read() == b""


async def test_stderr_of_a_program_that_is_talked_to_is_bounded(sandbox: NamespaceSandbox) -> None:
    async with await sandbox.open() as session:
        program = Program.python("import sys\nwhile True: sys.stderr.write('x' * 1000)")
        running = await session.start(program, limits=Limits(output_bytes=5000))
        done = await running.wait()
    assert (done.status, len(done.stderr)) == (Status.OUTPUT_LIMIT, 5000)


async def test_more_runs_than_slots_all_end_with_their_own_output(sandbox: NamespaceSandbox) -> None:
    runs = [sandbox.run(Program.python(f"print({number})")) for number in range(30)]
    assert [done.stdout for done in await asyncio.gather(*runs)] == [b"%d\n" % number for number in range(30)]


async def test_a_cancelled_run_frees_its_slot(sandbox: NamespaceSandbox) -> None:
    runs = [asyncio.create_task(sandbox.run(Program.python("while True: pass"))) for _ in range(4)]
    await asyncio.sleep(0)  # they are asked for; whether they run already must not matter
    for run in runs:
        run.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*runs, return_exceptions=True))
    assert await output_of(sandbox, "print(1)") == "1\n"


async def test_what_ran_is_measured(sandbox: NamespaceSandbox) -> None:
    source = "import time\nx = bytearray(100 << 20)\ns = time.process_time()\nwhile time.process_time() < s + 0.3: pass"
    done = await sandbox.run(Program.python(source))
    assert done.status is Status.OK
    assert 0.3 <= done.cpu_s <= done.wall_s + 0.1
    assert 100 << 20 <= done.peak_bytes < 200 << 20


async def test_protections_are_named_once_each(sandbox: NamespaceSandbox) -> None:
    protections = await sandbox.protections()
    assert len({each.name for each in protections}) == len(protections) >= 12
    assert all(each.how for each in protections)
