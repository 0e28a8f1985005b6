"""The docker sandbox against a real engine that the tests start: statuses, walls, sessions, and what is left."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from quintain.failure import FailureError, QuintainError
from quintain.verifiers.sandbox.container_session import ContainerSession
from quintain.verifiers.sandbox.docker import DockerSandbox
from quintain.verifiers.sandbox.interface import Limits, Program, Status

from .engine import IMAGE, NoEngine, engine
from .hostile_programs import HOSTILE, limits_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs_docker]
NEIGHBOUR = Program.python("import time\nfor i in range(20): time.sleep(0.01)\nprint(sum(range(200_000)))")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of an engine of our own."""
    try:
        with engine() as address:
            yield address
    except NoEngine as why:
        pytest.skip(f"the docker sandbox is not tested: {why}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker(url: str) -> AsyncIterator[DockerSandbox]:
    async with DockerSandbox(IMAGE, slots=2, url=url) as sandbox:
        yield sandbox


def containers(url: str) -> list[str]:
    """Of the engine, running or not."""
    done = subprocess.run(["docker", "--host", url, "ps", "-aq"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def kill_containers(url: str, names: list[str]) -> None:
    """Somebody else does; those that are going already may be gone."""
    subprocess.run(["docker", "--host", url, "kill", *names], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("source", "limits", "status", "output"),
    [
        ("print(int(input()) * 2)", Limits(), Status.OK, b"42\n"),
        ("raise SystemExit(3)", Limits(), Status.RUNTIME_ERROR, b""),
        ("import ctypes; ctypes.string_at(0)", Limits(), Status.RUNTIME_ERROR, b""),
        ("while True: pass", Limits(wall_s=0.5), Status.TIMEOUT, b""),
        ("while True: pass", Limits(cpu_s=0.5), Status.TIMEOUT, b""),
        ("import time; time.sleep(1e9)", Limits(wall_s=0.5), Status.TIMEOUT, b""),
        ("while True: print(end='x')", Limits(output_bytes=9), Status.OUTPUT_LIMIT, b"x" * 9),
        ("print(end='x' * 10)", Limits(output_bytes=9), Status.OUTPUT_LIMIT, b"x" * 9),
        ("print(end='x' * 9)", Limits(output_bytes=9), Status.OK, b"x" * 9),
        ("x = bytearray(1 << 40)", Limits(), Status.MEMORY_LIMIT, b""),
        ("import helper; print(helper.x, open('a/b').read())", Limits(), Status.OK, b"7 c\n"),
    ],
)
async def test_programs_end_as_they_should(
    docker: DockerSandbox, source: str, limits: Limits, status: Status, output: bytes
) -> None:
    files = {"helper.py": b"x = 7", "a/b": b"c"}
    done = await docker.run(Program.python(source), stdin=b"21\n", files=files, limits=limits)
    assert (done.status, done.stdout) == (status, output), done


async def test_a_signal_is_reported_as_one(docker: DockerSandbox) -> None:
    done = await docker.run(Program.python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert (done.exit, done.status) == (-signal.SIGSEGV, Status.RUNTIME_ERROR)
    assert (await docker.run(Program.command("no-such-program"))).exit == 127


async def test_bytes_of_every_kind_go_in_and_come_out(docker: DockerSandbox) -> None:
    data = bytes(range(256)) * 4096
    program = Program.python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")
    done = await docker.run(program, stdin=data, limits=Limits(output_bytes=len(data)))
    assert (done.status, done.stdout == data) == (Status.OK, True)


async def test_what_ran_is_measured(docker: DockerSandbox) -> None:
    source = "import sys, time\nx = bytearray(100 << 20)\nwhile time.process_time() < 0.3: pass\nsys.stderr.write('e')"
    done = await docker.run(Program.python(source))
    assert (done.status, done.stderr) == (Status.OK, b"e")
    assert 0.25 <= done.cpu_s <= done.wall_s + 0.3
    assert 100 << 20 <= done.peak_bytes < 200 << 20


WALLS = """
import os, socket
def raises(f, *args):
    try: f(*args)
    except OSError: return True
    return False
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
print([name for name, held in {
    'user': os.getuid() >= 1_900_000 and os.getgroups() in ([], [os.getgid()]),
    'capabilities': all(int(status[f'Cap{kind}'], 16) == 0 for kind in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')),
    'no new privileges': status['NoNewPrivs'].strip() == '1' and status['Seccomp'].strip() == '2',
    'root': all(raises(open, f'{folder}/x', 'w') for folder in ('/', '/usr', '/etc', '/dev', '/sys', '/proc')),
    'secrets': raises(open, '/etc/secret-of-the-image') and raises(open, '/etc/shadow'),
    'interfaces': [name for _, name in socket.if_nameindex()] in ([], ['lo']),
    'network': raises(socket.create_connection, ('192.0.2.1', 80), 1),
    'engine': not os.path.exists('/var/run/docker.sock') and not os.path.exists('/run/docker.sock'),
    'process 1': all(raises(open, f'/proc/1/{name}') for name in ('environ', 'mem', 'maps')) and raises(os.kill, 1, 9),
    'its supervisor': all(raises(open, f'/proc/{os.getppid()}/{name}') for name in ('environ', 'mem', 'maps')),
    'descriptors': sorted(os.listdir('/proc/self/fd'))[:3] == ['0', '1', '2'] and len(os.listdir('/proc/self/fd')) == 4,
    'folders': [os.listdir(folder) for folder in ('/tmp', '/dev/shm', '/work')] == [[], [], ['main.py']],
}.items() if not held])
"""


async def test_the_walls_that_are_called_held_hold(docker: DockerSandbox) -> None:
    for _ in range(3):  # more than there are containers, and each leaves what the next must not find
        poison = "for folder in ('/tmp', '/dev/shm', '/work'): open(folder + '/json.py', 'w').write('1/0')"
        assert (await docker.run(Program.python(poison))).status is Status.OK
        done = await docker.run(Program.python(WALLS))
        assert (done.stdout, done.stderr) == (b"[]\n", b"")
    held = {each.name for each in await docker.protections() if each.held}
    assert held >= {"files", "disk", "network", "processes", "capabilities", "system calls", "memory of all processes"}


CHOSEN = [
    "a fork bomb", "a thread bomb", "a memory bomb", "a memory bomb that goes on", "a memory bomb of many processes",
    "endless output of a child", "a full disk", "a million files", "a million folders", "every signal ignored",
    "a daemon left behind", "a daemon that holds stdout", "a daemon that forks on", "a stopped process", "kill(-1)",
    "kill its init", "descriptors that are all closed", "standard input that is never read", "sleep at exit",
]  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
async def test_a_hostile_program_ends_in_time_and_costs_nobody_anything(docker: DockerSandbox, name: str) -> None:
    source, statuses = HOSTILE[name]
    hostile = asyncio.create_task(docker.run(Program.python(source), stdin=bytes(1 << 20), limits=limits_of(statuses)))
    neighbour = await docker.run(NEIGHBOUR, limits=Limits(wall_s=20))
    done = await hostile
    assert done.status in statuses | ({Status.RUNTIME_ERROR} if name == "kill(-1)" else set()), done
    assert (neighbour.status, neighbour.stdout) == (Status.OK, b"19999900000\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_hurting_its_supervisor_does_not_help_a_program(docker: DockerSandbox, number: int) -> None:
    source = f"import os, sys; os.kill(os.getppid(), {int(number)}); sys.exit(0)"
    done = await docker.run(Program.python(source), limits=Limits(wall_s=1))
    assert done.status in (Status.RUNTIME_ERROR, Status.TIMEOUT)


async def test_files_of_a_session_stay_and_its_processes_do_not(docker: DockerSandbox) -> None:
    async with await docker.open({"first.txt": b"1"}) as session:
        left = "import os, time\nopen('second.txt', 'w')\nif os.fork() == 0: os.setsid(); time.sleep(1e9)"
        assert (await session.run(Program.python(left))).status is Status.OK
        listing = "import os; print(sorted(os.listdir()), len([p for p in os.listdir('/proc') if p.isdigit()]))"
        done = await session.run(Program.python(listing, name="list.py"), files={"third.txt": b"3"})
        assert done.stdout == b"['first.txt', 'list.py', 'main.py', 'second.txt', 'third.txt'] 3\n"
        slow = await session.run(Program.python("while True: pass"), limits=Limits(wall_s=0.3, memory_bytes=99 << 20))
        assert (slow.status, (await session.run(Program.python("print(1)"))).stdout) == (Status.TIMEOUT, b"1\n")


async def test_one_can_talk_with_a_program(docker: DockerSandbox) -> None:
    program = Program.python("import sys\nfor line in sys.stdin: print(int(line) + 1, flush=True)\nprint('end')")
    async with await docker.open() as session:
        running = await session.start(program)
        with pytest.raises(QuintainError, match="one command at a time"):
            await session.run(program)
        for number in (1, 41):
            running.stdin.write(b"%d\n" % number)
            assert await running.stdout.readline() == b"%d\n" % (number + 1)
        running.stdin.close()
        assert await running.stdout.read() == b"end\n"
        done = await running.wait()
        assert (done.status, done.stdout, done.exit) == (Status.OK, b"", 0)
        late = await session.start(Program.python("input()"), limits=Limits(wall_s=0.3))
        assert (await late.wait()).status is Status.TIMEOUT
        running = await session.start(Program.python("input()"))
    assert (await running.wait()).status is Status.RUNTIME_ERROR


async def test_a_cancelled_run_frees_its_slot(docker: DockerSandbox) -> None:
    runs = [asyncio.create_task(docker.run(Program.python("while True: pass"))) for _ in range(4)]
    await asyncio.sleep(0)
    for run in runs:
        run.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*runs, return_exceptions=True))
    assert (await docker.run(Program.python("print(1)"))).stdout == b"1\n"


async def test_a_container_that_is_lost_is_not_the_programs_fault(docker: DockerSandbox, url: str) -> None:
    async with await docker.open() as session:
        running = await session.start(Program.python("print('up', flush=True); input()"))
        assert await running.stdout.readline() == b"up\n"
        kill_containers(url, [session.container.name])  # type: ignore[attr-defined]
        done = await running.wait()
        assert done.status is Status.INFRA_ERROR, done
        with pytest.raises(FailureError):
            await session.start(Program.python("1"))
    kill_containers(url, containers(url))  # those that stand ready
    assert [(await docker.run(Program.python("print(1)"))).stdout for _ in range(3)] == [b"1\n"] * 3


async def test_a_container_that_ends_for_lack_of_memory_is_the_programs_fault(docker: DockerSandbox, url: str) -> None:
    """Files in memory belong to no process: the kernel takes the biggest ones, which are ours, process 1 at last."""
    fill = "for file in /work/a /tmp/b /dev/shm/c; do cat /dev/zero > $file & done; wait"
    bomb = Program.command("sh", "-c", f"echo 0 > /proc/$$/oom_score_adj; {fill}; sleep 60")
    async with await docker.open(limits=Limits(memory_bytes=48 << 20)) as session:
        assert isinstance(session, ContainerSession)
        neighbour = asyncio.create_task(docker.run(NEIGHBOUR, limits=Limits(wall_s=20)))
        done = await session.run(bomb)
        assert done.status is Status.MEMORY_LIMIT, done
        assert not await session.container.kill_all()  # nothing can be run in it any more
        assert await session.container.ran_out_of_memory()
        assert session.container.name[:12] not in containers(url)
    assert (await neighbour).status is Status.OK
    assert (await docker.run(Program.python("print(1)"))).stdout == b"1\n"


async def test_a_bigger_box_is_made_to_measure(docker: DockerSandbox) -> None:
    source = "import os; s = os.statvfs('/work'); print(s.f_blocks * s.f_frsize, s.f_files)"
    done = await docker.run(Program.python(source), limits=Limits(workdir_bytes=8 << 20, inodes=77))
    assert done.stdout == b"%d 77\n" % (8 << 20)


SERVICE = """
import asyncio, sys
from quintain.verifiers.sandbox.docker import DockerSandbox
from quintain.verifiers.sandbox.interface import Program
async def main():
    async with DockerSandbox(sys.argv[2], slots=1, url=sys.argv[1]) as sandbox, await sandbox.open() as session:
        running = await session.start(Program.python("print('up', flush=True); import time; time.sleep(1e9)"))
        print(await running.stdout.readline(), flush=True)
        await running.wait()
asyncio.run(main())
"""


async def test_nothing_is_left_when_it_is_closed_or_its_service_killed(url: str) -> None:
    before = set(await asyncio.to_thread(containers, url))
    events = ["docker", "--host", url, "events", "--filter", "event=destroy", "--format", "{{json .ID}}"]
    with subprocess.Popen(events, stdout=subprocess.PIPE) as gone:  # noqa: ASYNC220
        async with DockerSandbox(IMAGE, slots=1, url=url) as sandbox:
            assert (await sandbox.run(Program.python("print(1)"))).stdout == b"1\n"
            assert set(containers(url)) - before
        assert set(containers(url)) <= before
        command = [sys.executable, "-c", SERVICE, url, IMAGE]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as service:  # noqa: ASYNC220
            assert service.stdout is not None
            assert service.stdout.readline() == b"b'up\\n'\n"
            left = set(containers(url)) - before
            assert left
            service.send_signal(signal.SIGKILL)
        assert gone.stdout is not None
        while left:
            line = await asyncio.to_thread(gone.stdout.readline)
            left = {name for name in left if not json.loads(line).startswith(name)}
        gone.terminate()


async def test_what_cannot_be_is_told_with_what_to_do(url: str) -> None:
    with pytest.raises(QuintainError, match="find the image 'no-such-image'"):
        await DockerSandbox("no-such-image", url=url).start()
    with pytest.raises(QuintainError, match="no container engine listens at unix:///nowhere"):
        await DockerSandbox(IMAGE, url="unix:///nowhere/engine.sock").start()
    with pytest.raises(QuintainError, match="unix:///path or tcp://"):
        DockerSandbox(IMAGE, url="https://example.org")
    with pytest.raises(QuintainError, match="at least one slot"):
        DockerSandbox(IMAGE, url=url, slots=0)
    sandbox = DockerSandbox(IMAGE, url=url)
    await sandbox.close()
    with pytest.raises(QuintainError, match="closed"):
        await sandbox.run(Program.python("1"))
