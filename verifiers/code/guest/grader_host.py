"""Keeps a grader ready: each item's tests run in a fork of this process, one after the other.

Frames: a job comes, and the fork that does it talks as `grader` says; after its end `R` goes out, or `D` and its exit
code where it gave no finding. What always holds: a fork has nothing of another's memory, and no process of its group or
file of its folder outlives it; what it prints goes nowhere; its processor time is bounded.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal

from . import grader, values
from .wire import StdioChannel


def main() -> None:
    """Serve jobs until the other end closes the channel."""
    channel = StdioChannel()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    gc.collect()
    gc.freeze()  # so that forks share it
    while True:
        job = values.parse(channel.receive())
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                bound_time(job["cpu_s"])
                grader.run(channel, job)
            finally:
                os._exit(1)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(OSError):  # there is nobody left
            os.killpg(pid, signal.SIGKILL)  # its number is not anybody else's yet
        _, status = os.waitpid(pid, 0)
        empty(os.curdir)
        code = os.waitstatus_to_exitcode(status)
        channel.send(b"D%d" % code if code else b"R")


def warm() -> None:
    """Have what every item needs run here already."""
    grader.warm()


def bound_time(cpu_s: float) -> None:
    """Bound the processor time of this process."""
    wanted, hard = int(cpu_s) + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (wanted, wanted))


def empty(folder: str) -> None:
    """Remove what is in `folder`."""
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
