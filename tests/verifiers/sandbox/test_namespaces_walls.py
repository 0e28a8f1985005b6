"""Every wall that `protections` calls held is run against; what it calls not held is named with a reason."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from quintain.verifiers.sandbox.interface import Limits, Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

from . import leftovers

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What a program says when it has got through: a wall that stands leaves only "held".
PRELUDE = """
import ctypes, errno, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *args):
    ctypes.set_errno(0)
    return libc[call](*args) < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS, errno.EACCES)
def refused_void(call):
    ctypes.set_errno(0)
    getattr(libc, call)()
    return ctypes.get_errno() == errno.EPERM
def raises(f, *args):
    try: f(*args)
    except (OSError, ValueError): return True
    return False
def more(kind):
    soft, hard = resource.getrlimit(kind)
    return hard == -1 and kind == 6 or raises(resource.setrlimit, kind, (hard, hard + 1 if hard > 0 else 1 << 20))
def set_oom(value):
    with open('/proc/self/oom_score_adj', 'w') as file: file.write(value)
def raises_setns():
    return all(refused('setns', os.open('/proc/self/ns/' + n, os.O_RDONLY), 0) for n in ('user', 'mnt', 'pid', 'net'))
pair, limit = (ctypes.c_int * 2)(), (ctypes.c_ulong * 2)()
"""

HOST_SOCKET = f"\0quintain-test-{os.getpid()}"
ATTACKS: dict[str, dict[str, str]] = {
    "files": {
        "home folders": "all(not os.path.exists(p) for p in ('/root', '/home', '/work', '/var/log', '/run', '/sys'))",
        "secrets": "all(not os.path.exists(p) for p in ('/etc/shadow', '/etc/ssh', '/etc/environment', '/proc/kcore'))",
        "the way back": "os.chdir('/') is None and os.path.samefile('/..', '/') and raises(os.listdir, '/host')",
        "writing to system folders": "all(raises(open, p + '/x', 'w') for p in ('/', '/usr/bin', '/etc', '/dev'))",
        "other mounts": "raises(os.mkdir, '/proc/x') and not os.path.exists('/proc/sys')",
        "unmounting": "refused('umount2', b'/proc', 2) and refused('mount', b'/', b'/tmp', b'', 4096, None)",
        "a device": "raises(os.mknod, 'disk', 0o060666, os.makedev(254, 0))",
        "chroot": "refused('chroot', b'/tmp') and refused('syscall', 155, b'/tmp', b'/tmp')",
        "mounts of the new kind": "all(refused('syscall', n, 0, 0, 0, 0, 0) for n in (428, 429, 430, 431, 432, 442))",
        "the bounds of its own folder": "refused('mount', b'none', b'/box', b'tmpfs', 32, b'size=1g')",
        "set-user-id": "not any(os.stat(f'/usr/bin/{n}').st_mode & 0o4000 and os.access(f'/usr/bin/{n}', os.X_OK) and "
        "os.system(f'/usr/bin/{n} -c id 2>&1 | grep -q uid=0') == 0 for n in ('su',))",
    },
    "network": {
        "tcp": "raises(socket.socket, socket.AF_INET)",
        "every other family": "all(raises(socket.socket, f, t) for f in range(64) for t in (1, 2, 3, 5) if f != 1)",
        "pairs of every other family": "all(libc.socketpair(f, 1, 0, pair) < 0 for f in range(64) if f != 1)",
        "tcp over IPv6": "raises(socket.socket, socket.AF_INET6)",
        "udp": "raises(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)",
        "netlink": "raises(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)",
        "packets": "raises(socket.socket, 17, socket.SOCK_RAW)",
        "vsock": "raises(socket.socket, 40, socket.SOCK_STREAM)",
        "kernel crypto": "raises(socket.socket, 38, socket.SOCK_SEQPACKET)",
        "interfaces": "raises(socket.if_nameindex) or [n for _, n in socket.if_nameindex()] in ([], ['lo'])",
        "the host's unix sockets": f"raises(socket.socket(socket.AF_UNIX).connect, {HOST_SOCKET!r})",
    },
    "processes": {
        "limits of the init": "libc.prlimit(1, 7, None, limit) < 0 or limit[1] > 0",
        "others in /proc": "[p for p in os.listdir('/proc') if p.isdigit()] == [str(os.getpid())]",
        "the init's files": "all(raises(open, f'/proc/1/{f}') for f in ('environ', 'mem', 'maps', 'cmdline', 'stat'))",
        "ptrace": "refused('ptrace', 16, 1, 0, 0)",
        "reading another's memory": "refused('process_vm_readv', 1, None, 0, None, 0, 0)",
        "a descriptor of the init": "libc.syscall(434, 1, 0) < 0 and libc.syscall(438, 1, 0, 0) < 0",
        "shared memory of System V": "libc.shmget(1, 4096, 0o1666) < 0",
        "message queues": "libc.mq_open(b'/x', os.O_CREAT | os.O_RDWR, 0o666, None) < 0",
    },
    "verdict": {
        "descriptors": "sorted(map(int, os.listdir('/proc/self/fd')))[:-1] == [0, 1, 2]",
        "the parent": "os.getppid() == 0",
        "its group": "os.getpgrp() == os.getpid()",
        "its standard input": "raises(os.ftruncate, 0, 1) and raises(os.pwrite, 0, b'x', 0)",
    },
    "capabilities": {
        "capabilities": "all(int(l.split()[1], 16) == 0 for l in open('/proc/self/status') "
        "if l.startswith(('CapEff', 'CapPrm', 'CapInh', 'CapAmb')))",
        "no new privileges": "'NoNewPrivs:\\t1' in open('/proc/self/status').read()",
        "becoming root": "raises(os.setuid, 0) and raises(os.setgroups, [0])",
        "higher limits": "all(more(n) for n in (0, 1, 2, 3, 6, 7, 8, 12))",
        "a place before others": "raises(os.nice, -1) and raises(set_oom, '-999')",
        "the name of the host": "raises(socket.sethostname, 'mine') and socket.gethostname() == 'sandbox'",
    },
    "system calls": {
        "a filter": "'Seccomp:\\t2' in open('/proc/self/status').read()",
        "entering namespaces": "raises_setns() and refused('setns', 0, 0)",
        "anonymous memory files": "libc.syscall(447, 0) < 0",
        "another's memory advice": "refused('syscall', 440, 0, 0, 0, 0, 0) and refused('syscall', 448, 0, 0)",
        "watching all files": "refused('syscall', 300, 0, 0)",
        "flushing the host's disks": "refused_void('sync') and refused('syncfs', 0)",
        "namespaces": "all(refused('unshare', f) for f in (0x10000000, 0x20000, 0x40000000, 0x20000000))",
        "clone into namespaces": "all(refused('syscall', 56, f | 17, 0, 0, 0, 0) for f in (0x10000000, 0x20000))",
        "clone3": "libc.syscall(435, 0, 0) < 0 and ctypes.get_errno() == errno.ENOSYS",
        "io_uring": "libc.syscall(425, 1, 0) < 0 and ctypes.get_errno() == errno.ENOSYS",
        "bpf": "refused('syscall', 321, 0, 0, 0)",
        "perf": "refused('syscall', 298, 0, 0, 0, 0, 0)",
        "userfaultfd": "refused('syscall', 323, 0)",
        "keys": "refused('syscall', 248, b'user', b'a', b'b', 1, -2) and refused('syscall', 250, 0, -3, 0)",
        "kexec": "refused('syscall', 246, 0, 0, 0, 0)",
        "modules": "refused('syscall', 175, 0, 0, b'') and refused('syscall', 313, 0, b'', 0)",
        "handles": "refused('syscall', 304, 0, 0, 0)",
        "memory files": "libc.syscall(319, b'x', 0) < 0",
        "calls of tomorrow": "libc.syscall(900, 0) < 0 and ctypes.get_errno() == errno.ENOSYS",
        "calls of x32": "libc.syscall(0x40000000 + 39) < 0 and ctypes.get_errno() == errno.ENOSYS",
        "the clock": "refused('syscall', 227, 0, 0)",
        "a reboot": "refused('syscall', 169, 0, 0, 0, 0)",
        "the kernel's log": "refused('syscall', 103, 3, 0, 0)",
    },
}

LOOPBACK = {
    **ATTACKS["network"],
    "tcp": "(own := socket.create_server(('127.0.0.1', 0))) and socket.create_connection(own.getsockname(), 1)",
    "udp": "raises(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect, ('192.0.2.1', 53))",
    "elsewhere": "raises(socket.create_connection, ('192.0.2.1', 80), 1)",
    "the host's loopback": "raises(socket.create_connection, ('127.0.0.1', HOST_PORT), 1)",
    "every other family": "all(raises(socket.socket, f, t) for f in (0, *range(3, 64)) for t in (1, 2, 3, 5))",
    "every other protocol": "all(raises(socket.socket, 2, t, p) for t in (1, 2, 5) for p in range(1, 263) if p != 6)",
    "raw sockets": "raises(socket.socket, socket.AF_INET, socket.SOCK_RAW, 255)",
    "an interface of its own": "(s := socket.socket()) and refused('ioctl', s.fileno(), 0x8914, b'lo' + bytes(38))",
}
"""The network of a program that has a loopback."""


@pytest.fixture(scope="module")
def unix_socket() -> Iterator[None]:
    """A socket of the host with an abstract name."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(HOST_SOCKET)
        listening.listen()
        yield


@pytest.mark.usefixtures("unix_socket")
@pytest.mark.parametrize("wall", ATTACKS)
async def test_a_wall_that_is_called_held_holds(sandbox: NamespaceSandbox, wall: str) -> None:
    assert {each.name: each.held for each in await sandbox.protections()}[wall]
    checks = "".join(f"if not ({check}): print({name!r})\n" for name, check in ATTACKS[wall].items())
    done = await sandbox.run(Program.python(PRELUDE + checks + "print('held')"))
    assert (done.stdout.decode(), done.stderr.decode()) == ("held\n", "")


@pytest.mark.usefixtures("unix_socket")
@pytest.mark.parametrize("wall", ATTACKS)
async def test_a_program_with_a_loopback_has_the_same_walls(sandbox: NamespaceSandbox, wall: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        attacks = LOOPBACK if wall == "network" else ATTACKS[wall]
        checks = "".join(f"if not ({check}): print({name!r})\n" for name, check in attacks.items())
        source = PRELUDE + checks.replace("HOST_PORT", str(listening.getsockname()[1])) + "print('held')"
        done = await sandbox.run(replace(Program.python(source), has_loopback=True))
    assert (done.stdout.decode(), done.stderr.decode()) == ("held\n", "")


async def test_who_a_program_is(sandbox: NamespaceSandbox) -> None:
    """`identity`: with root's means its user is nobody else's; without, it is the service's, and that is said."""
    async with await sandbox.open() as session:
        running = await session.start(Program.python("print('up', flush=True); input()"))
        await running.stdout.readline()
        zygote = sandbox.zygote_pid
        assert zygote is not None
        statuses = [leftovers.status_of(process.pid) for process in psutil.Process(zygote).children(recursive=True)]
        owners = {
            int(status["Uid"].split()[0]) for status in statuses if status.get("NStgid", "").split()[-1:] == ["2"]
        }
        running.kill()
    assert len(owners) == 1
    held = {each.name: each.held for each in await sandbox.protections()}["identity"]
    service = os.stat(f"/proc/{zygote}").st_uid
    assert (owners != {service}) == held


async def test_the_number_of_processes_is_bounded(sandbox: NamespaceSandbox) -> None:
    source = (
        "import os, time\nn = 0\ntry:\n    while n < 1000:\n        if os.fork() == 0: time.sleep(99)\n        n += 1\n"
        "except BlockingIOError: pass\nprint(n)"
    )
    done = await sandbox.run(Program.python(source), limits=Limits(processes=10))
    assert done.stdout == b"9\n"


async def test_a_neighbour_does_not_use_up_ones_processes(sandbox: NamespaceSandbox) -> None:
    source = (
        "import os, time\nfor _ in range(9):\n    if os.fork() == 0: time.sleep(100)\nprint('up', flush=True); input()"
    )
    async with await sandbox.open() as session:
        running = await session.start(Program.python(source), limits=Limits(processes=10))
        assert await running.stdout.readline() == b"up\n"
        fork = "import os\nif os.fork(): os.wait()\nprint('both')"
        done = await sandbox.run(Program.python(fork), limits=Limits(processes=3))
    assert done.stdout == b"both\nboth\n"


async def test_the_disk_is_bounded_in_bytes_and_files(sandbox: NamespaceSandbox) -> None:
    source = (
        "import os\nwritten = made = 0\n"
        "try:\n    f = open('/tmp/big', 'wb', 0)\n    while True: written += f.write(bytes(1 << 16))\n"
        "except OSError: os.remove('/tmp/big')\n"
        "try:\n    while True: open(f'/dev/shm/{made}', 'w').close(); made += 1\n"
        "except OSError: print(written, made)\n"
    )
    done = await sandbox.run(Program.python(source), limits=Limits(workdir_bytes=8 << 20, inodes=100))
    written, made = map(int, done.stdout.split())
    assert 7 << 20 <= written <= 8 << 20
    assert 80 <= made <= 100


async def test_a_file_has_its_largest_size(sandbox: NamespaceSandbox) -> None:
    source = "f = open('big', 'wb', 0)\ntry:\n    while True: f.write(bytes(1000))\nexcept OSError: print(f.tell())"
    done = await sandbox.run(Program.python(source), limits=Limits(file_bytes=100_000))
    assert done.stdout == b"100000\n"


async def test_memory_of_one_process_is_bounded(sandbox: NamespaceSandbox) -> None:
    for source in ("x = bytearray(1 << 40)", "x = bytearray(300 << 20)"):
        done = await sandbox.run(Program.python(source), limits=Limits(memory_bytes=100 << 20))
        assert done.status is Status.MEMORY_LIMIT


async def test_memory_of_all_processes_is_bounded_at_once_or_soon(sandbox: NamespaceSandbox) -> None:
    source = (
        "import os, time\nfor _ in range(7):\n    if os.fork() == 0: break\nx = bytearray(40 << 20)\n"
        "time.sleep(5)\nprint('all of it')"
    )
    done = await sandbox.run(Program.python(source), limits=Limits(memory_bytes=100 << 20))
    assert b"all of it" not in done.stdout * (done.stdout.count(b"all of it") == 8)
    assert done.status in (Status.MEMORY_LIMIT, Status.OK)
    if {each.name: each.held for each in await sandbox.protections()}["memory of all processes"]:
        assert done.peak_bytes < 140 << 20
    else:
        assert done.status is Status.MEMORY_LIMIT


SHARED = (
    "import ctypes, mmap\nif {}: ctypes.CDLL(None).prctl(4, 0)\n"
    "memory = mmap.mmap(-1, 600 << 20)\nfor page in range(0, 600 << 20, 4096): memory[page] = 1"
)


async def test_every_program_of_a_slot_is_looked_at_where_there_are_no_control_groups(user: int | None) -> None:
    """The first as much as those whose numbers are those of something of ours; and what lets nobody look at it."""
    limits = Limits(wall_s=30, cpu_s=30, memory_bytes=256 << 20)
    async with NamespaceSandbox(slots=1, user=user, control_groups=False) as sandbox:
        for number in range(4):
            done = await sandbox.run(Program.python(SHARED.format(number % 2)), limits=limits)
            assert (done.status, number) == (Status.MEMORY_LIMIT, number)
    async with NamespaceSandbox(slots=1, user=user, control_groups=False) as sandbox:
        done = await sandbox.run(Program.python("while True: pass"), limits=replace(limits, cpu_s=0.5))
        assert (done.status, done.exit) == (Status.TIMEOUT, -signal.SIGKILL), "by the keeper, before its own limit"


async def test_processor_time_of_all_processes_is_bounded(sandbox: NamespaceSandbox) -> None:
    source = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    done = await sandbox.run(Program.python(source), limits=Limits(wall_s=30, cpu_s=0.5))
    assert done.status is Status.TIMEOUT
    assert done.wall_s < 10


async def test_the_disk_of_a_session_is_not_executable_as_root(sandbox: NamespaceSandbox) -> None:
    """A set-user-id copy of a program is worth nothing."""
    source = "cp /usr/bin/id ./id; chmod 4755 ./id; ./id -u"
    done = await sandbox.run(Program.command("sh", "-c", source))
    assert done.stdout == b"1000\n"
