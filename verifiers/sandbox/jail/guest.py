"""The guest: a process that gives up every power and every descriptor it has, then becomes the program.

What always holds when the first instruction of the program runs: its user is nobody outside, it has no
capability in any user namespace and cannot gain one, the system calls of `seccomp` are refused, its limits are
set, and of the descriptors of its ancestors it has 0, 1 and 2. Its files are written after that, as this user:
a link that an earlier command has planted leads nowhere the program could not go itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import stat
import struct
import types
from typing import Any, NoReturn

from . import kernel, root, script

HEADER = struct.Struct("=I")
"""Of a command: the length of its JSON part, which the contents of its files follow."""
PROC_OPTIONS = "subset=pid,hidepid=invisible"
GUEST_ID = 1000
CPU_GRACE_S = 1
"""The keeper sums processor time up and ends the program; the kernel's own limit is behind it."""
MOST_INODES = 1 << 48
"""What a tmpfs takes for a bound."""
FIRST_TO_GO = "1000"
"""Where memory is used up, the kernel takes a program before all else: never its keeper."""
READY = b"\0"
NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes where the command cannot be run, as a shell gives them."""


def become(
    fds: list[int],
    begins: int,
    fresh: bool,
    data_bytes: int,
    memory_bytes: int,
    users: int,
    uid: int,
    filters: list[kernel.Filter | None],
    prepared: dict[str, types.ModuleType],
) -> None:
    """Turn this process into the program of a command; never returns.

    `fds` are the command itself, and the program's stdin, stdout and stderr. On `begins`, a socket, it says READY, and
    begins when it is told to; or what trouble there is on our side. `fresh` says that the session has no file system
    yet; `data_bytes` bounds what one process may map for itself, `memory_bytes` its files where no control group does.
    `filters` are the filter of a program and of one with a loopback, `prepared` the programs that the sandbox was made
    with.
    """
    try:
        command, blobs = read_command(fds[0])
        if fresh:
            mount_box(command["limits"], uid, memory_bytes)
        begins = keep_only(fds[1:], begins, users, uid, command["loopback"])
        drop_powers(filters[command["loopback"]])
        try:
            enter_work()
            write_files(command["files"], blobs)
        except OSError as error:
            if fresh:
                raise
            refuse(str(error))  # an earlier command of the session is to blame
        set_limits(command["limits"], data_bytes, command["limits"]["processes"])
        argv, env = command["argv"], command["env"]
        main = blobs[command["files"].index(argv[0])] if command["python"] else None
        main = prepared[argv[0]] if command["prepared"] else main
        blobs.clear()
        os.write(begins, READY)
        if not os.read(begins, 1):
            return  # its keeper is gone
        os.close(begins)
        if main is not None:
            script.run(main, argv, env)
        execute(argv, env)
    except BaseException as error:
        os.write(begins, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        os._exit(NOT_EXECUTABLE)


def read_command(fd: int) -> tuple[dict[str, Any], list[bytes]]:
    """The command in the file `fd`, and the contents of its files."""
    body = os.pread(fd, os.fstat(fd).st_size, 0)
    (length,) = HEADER.unpack_from(body)
    at = HEADER.size + length
    command = json.loads(body[HEADER.size : at])
    blobs = []
    for size in command["sizes"]:
        blobs.append(body[at : at + size])
        at += size
    return command, blobs


def mount_box(limits: dict[str, Any], uid: int, memory_bytes: int) -> None:
    """Give the session a file system of its own, bounded in bytes and files, and its own view of processes."""
    inodes = min(limits["inodes"], MOST_INODES)
    size = min(limits["workdir_bytes"], memory_bytes)
    options = f"size={size},nr_inodes={inodes},mode=0755,uid={uid},gid={uid}"
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root.BOX, "tmpfs", plain, options)
    kernel.mount("proc", "/proc", "proc", plain | kernel.MS_NOEXEC, PROC_OPTIONS)


def keep_only(fds: list[int], begins: int, users: int, uid: int, loopback: bool) -> int:
    """Leave the user namespace of the keeper for the guests' own, and close all descriptors that are not the
    program's; the new number of `begins`. With `loopback`, leave its network for an own one that has that."""
    os.setsid()  # or it would share the keeper's turns, and signals to its own process group would reach the keeper
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        with contextlib.suppress(OSError):  # a pipe that is not the service's own still works as it is
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                os.fchown(number, uid, -1)  # so that /dev/stdout can be opened
    begins = fcntl.fcntl(begins, fcntl.F_DUPFD_CLOEXEC, 64)
    kernel.setns(users, kernel.CLONE_NEWUSER)
    if loopback:
        kernel.own_loopback()
    os.setresgid(GUEST_ID, GUEST_ID, GUEST_ID)
    os.setresuid(GUEST_ID, GUEST_ID, GUEST_ID)
    os.closerange(3, begins)
    os.closerange(begins + 1, 1 << 20)
    return begins


def set_limits(limits: dict[str, Any], data_bytes: int, processes: int = resource.RLIM_INFINITY) -> None:
    """Bound what this process and its children may use, each for itself; processes are counted per user."""
    cpu_s = int(limits["cpu_s"]) + CPU_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + CPU_GRACE_S))  # SIGXCPU, then SIGKILL
    for kind, value in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_STACK, limits["stack_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CORE, 1),  # at 0, the kernel would still hand a core to a host's program
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = hard if value == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def drop_powers(filter_program: kernel.Filter | None) -> None:
    """No capability, no way to one, and no system call that ordinary programs do without."""
    os.umask(0o022)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # its own /proc/self is its own again
    root.write("/proc/self/oom_score_adj", FIRST_TO_GO)
    if filter_program is not None:
        kernel.install_filter(filter_program)


def enter_work() -> None:
    """Have the folders of a session, and be in the one for work."""
    for folder in (root.WORK, root.BOX + "/tmp", root.BOX + "/shm"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
    root.hold(root.BOX)
    os.chdir(root.WORK)


def write_files(names: list[str], blobs: list[bytes]) -> None:
    """Write what the command brings into the current folder, in place of what is there."""
    for name, blob in zip(names, blobs, strict=True):
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # it may be a pipe, on which opening would wait for ever
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with open(fd, "wb") as file:
            file.write(blob)


def execute(argv: list[str], env: dict[str, str]) -> None:
    """Become the command line `argv`; where that cannot be, say so on stderr as a shell would."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        refuse(f"{argv[0]}: {error.strerror}", NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def refuse(why: str, code: int = NOT_EXECUTABLE) -> NoReturn:
    """Say on stderr why the program cannot be run, and end."""
    os.write(2, f"sandbox: cannot run the program: {why}\n".encode("utf-8", "replace"))
    os._exit(code)
