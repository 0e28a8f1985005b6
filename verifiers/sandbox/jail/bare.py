"""Becomes a program within limits but without any wall of its own: in a container, or in the process sandbox.

Called in the work folder, with the program's own standard streams. What always holds: BEGUN is written right before
the program begins, and by nobody else; whatever broke before that is on stderr.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import struct

from . import guest, kernel, root, script

BEGUN = b"\0"
USAGE = struct.Struct("=8sdQQ")
"""USAGE_MARK, processor seconds, processes killed for lack of memory, and the most bytes at one time."""
USAGE_MARK = b"\0USAGE\0\n"
CPU_NANOSECONDS = ("cpuacct/cpuacct.usage", "cpu,cpuacct/cpuacct.usage")
CPU_STATISTICS = "cpu.stat"
OUT_OF_MEMORY = ("memory/memory.oom_control", "memory.events")
PEAK = ("memory/memory.max_usage_in_bytes", "memory.peak")


def main(command_fd: int, begins: int, fresh: bool, data_bytes: int, processes: int = resource.RLIM_INFINITY) -> None:
    """Turn this process into the program of the command in the file `command_fd`; BEGUN goes to `begins`.

    `fresh` says that nothing has run in this folder yet; `data_bytes` bounds what one process may map for itself.
    """
    command, blobs = guest.read_command(command_fd)
    os.close(command_fd)
    names, argv, env = command["files"], command["argv"], command["env"]
    trouble = ""
    try:
        guest.write_files(names, blobs)
    except OSError as error:
        if fresh:
            raise
        trouble = str(error)  # an earlier command of the session is to blame
    source = blobs[names.index(argv[0])] if command["python"] else None
    blobs.clear()
    guest.set_limits(command["limits"], data_bytes, processes)
    script.hide()
    os.write(begins, BEGUN)
    if begins > 2:
        os.close(begins)
    if trouble:
        guest.refuse(trouble)
    if source is not None:
        script.run(source, argv, env)
    guest.execute(argv, env)


def supervise() -> None:
    """Go on as a child of this process, which ends as the child ends, once nothing else of this user runs.

    The last on stderr is then a USAGE. The program is of the same user and may kill this process, which costs
    nobody but itself; it cannot trace it, and whatever it says in its place can only make out its failure to be
    one of memory.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    before = usage()
    pid = os.fork()
    if pid == 0:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            root.write("/proc/self/oom_score_adj", guest.FIRST_TO_GO)
        return
    report = fcntl.fcntl(2, fcntl.F_DUPFD, 64)
    os.closerange(0, 64)  # whoever reads what the program writes waits for the program only
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # everybody of this user but itself
    after = usage()
    with contextlib.suppress(OSError):
        os.set_blocking(report, True)
        os.write(report, USAGE.pack(USAGE_MARK, after[0] - before[0], after[1] - before[1], after[2]))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def usage() -> tuple[float, int, int]:
    """Of the control groups that are in sight: processor seconds, processes killed for lack of memory, and the
    most bytes at one time; zeros where none is."""
    nanoseconds, microseconds = first(r"^(\d+)$", *CPU_NANOSECONDS), first(r"^usage_usec (\d+)$", CPU_STATISTICS)
    return (
        nanoseconds / 1e9 or microseconds / 1e6,
        first(r"^oom_kill (\d+)$", *OUT_OF_MEMORY),
        first(r"^(\d+)$", *PEAK),
    )


def first(pattern: str, *paths: str) -> int:
    """The number that `pattern` finds in the first of `paths` that is there, below /sys/fs/cgroup."""
    for path in paths:
        try:
            with open("/sys/fs/cgroup/" + path, encoding="ascii") as file:
                found = re.search(pattern, file.read(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
