"""Processes that end with the one that launched them, however that one ends.

A `Lifeline` is a pipe: the launcher keeps the writing end, its children inherit the reading end, and nothing
is ever written. When the launcher is gone, by return, by crash or by `kill -9`, the kernel closes the writing
end and every child reads the end of the file. Invariants:
- a child that called `hold_lifeline` gets SIGTERM then, and is gone after `grace_s` whatever its main thread
  does;
- a child that called `guard` takes with it every process it has started, even if its own threads are stuck.

    launcher                                              child
    line = Lifeline()
    Popen([...], pass_fds=[line.fd],                      hold_lifeline()
          env=os.environ | line.environ())
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import threading

LIFELINE_ENV = "QUINTAIN_LIFELINE_FD"
_PR_SET_PDEATHSIG = 1


class Lifeline:
    """The launcher's end: give `fd` to children through `pass_fds`, and its number through `environ()`.

    Closing it ends the children that hold it. The launcher must not fork without exec while it is open: the
    copy would keep the writing end alive.
    """

    def __init__(self) -> None:
        self.fd, self._kept = os.pipe()

    def environ(self) -> dict[str, str]:
        """The environment variable that tells a child which descriptor its lifeline is."""
        return {LIFELINE_ENV: str(self.fd)}

    def close(self) -> None:
        """Let go: every child that holds this lifeline ends. Closing twice is harmless."""
        kept, self._kept = self._kept, -1
        if kept >= 0:
            os.close(kept)
            os.close(self.fd)


def inherited() -> int | None:
    """The descriptor of this process's lifeline, or None where it has none.

    It is taken: this process's own children neither inherit the descriptor nor see the variable.
    """
    named = os.environ.pop(LIFELINE_ENV, None)
    if named is None:
        return None
    try:
        fd = int(named)
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    if not is_pipe:
        from quintain.failure import QuintainError  # here: a guard stays as small as it can be

        raise QuintainError(
            f"the lifeline must be an open pipe, but descriptor {named} is none: pass it with pass_fds, or unset"
            f" {LIFELINE_ENV}"
        )
    os.set_inheritable(fd, False)
    return fd


def hold_lifeline(*, grace_s: float = 5.0) -> bool:
    """End this process when its launcher is gone; False where it has no lifeline to hold.

    A thread waits for the end of the pipe, then sends this process SIGTERM so that it can tidy up, and
    `grace_s` later ends it. Raises QuintainError where the descriptor is not an open pipe.
    """
    fd = inherited()
    if fd is None:
        return False

    def watch(fd: int) -> None:
        while os.read(fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_s)
        os._exit(1)

    threading.Thread(target=watch, args=(fd,), name="lifeline", daemon=True).start()
    return True


def guard() -> None:
    """Go on as the child of a small guard, in a process group of their own (Linux). Call it first, with one
    thread.

    The guard runs nothing of ours: it kills the whole group when the lifeline ends or when the child does, so
    code that blocks the child's interpreter, and processes that this code has started, are ended too. Killing
    the group from outside (its id is the guard's process id) does the same.
    """
    fd = inherited()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    child = os.fork()
    if child == 0:
        die_with_parent()
        if fd is not None:
            os.close(fd)
        return
    for other in [int(name) for name in os.listdir("/proc/self/fd")]:
        if other > 2 and other != fd:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(other)
    poll = select.poll()
    for watched in (os.pidfd_open(child), *(() if fd is None else (fd,))):
        poll.register(watched, select.POLLIN | select.POLLHUP)
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that forked it ends (Linux)."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)
