"""The zygote: a small single-threaded process that has imported the check function and forks workers from it.

Importing sympy takes a second, forking a process that has it takes milliseconds: so a worker may be thrown away after
one bad item. Run by `quintain.verifiers.workers.handle` as `python -m quintain.verifiers.workers.zygote FD PARENT_PID`.

What always holds:
- a worker answers its items one by one, in order, on a socket that only it and the pool hold;
- workers die with the zygote (PR_SET_PDEATHSIG), and the zygote ends when the pool's end of its socket closes
  or its parent is gone, `kill -9` included: no process outlives its pool;
- only the zygote kills and reaps workers, so a process id is never used after it was given to somebody else;
- the check function runs in a worker's main thread, under limits on address space and, per item, on processor
  time.

Messages to the zygote: `init`, then `spawn` (with the worker's socket as a file descriptor) and `kill`, each
with the pool's token for the worker. From it: `ready` or `error`, then `exited`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NoReturn

from quintain.failure import one_line
from quintain.frames import FrameReader
from quintain.verifiers.workers.wire import encode, messages

PARENT_POLL_S: Final = 1.0
PR_SET_PDEATHSIG: Final = 1
CPU_GRACE_S: Final = 2
"""Processor time a worker may use beyond its item's deadline: the pool's own clock comes first, this is for
when the pool itself is stopped."""

Check = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Serve one pool until its end of the socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's business; it reaches the whole group
    zygote = WorkerZygote(control, parent)
    try:
        zygote.serve()
    finally:
        zygote.kill_all()


class WorkerZygote:
    """The state of the zygote: its live workers, by token."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control, self._parent = control, parent
        self._reader = FrameReader()
        self._fds: list[int] = []
        self._check: Check | None = None
        self._memory_bytes = 0
        self._pids: dict[int, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Do what the pool asks, until it is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        control = self._control.fileno()
        while os.getppid() == self._parent:
            readable, _, _ = select.select([control, self._wake_read], [], [], PARENT_POLL_S)
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
            self._reap()
            if control in readable and not self._obey():
                return

    def kill_all(self) -> None:
        """Kill and reap every worker."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        self._pids.clear()

    def _obey(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 16)
        except ConnectionError:
            return False
        self._fds += fds  # they come with the first byte of their message, which may be cut in two
        self._reader.feed(data)
        for message in messages(self._reader):
            kind = message["kind"]
            if kind == "init":
                self._prepare(message)
            elif kind == "spawn":
                self._spawn(message["token"], socket.socket(fileno=self._fds.pop(0)))
            elif kind == "kill" and message["token"] in self._pids:
                os.kill(self._pids[message["token"]], signal.SIGKILL)
        return bool(data)

    def _prepare(self, message: dict[str, Any]) -> None:
        self._memory_bytes = message["memory_bytes"]
        try:
            self._check = load(message["check"])
            if message["warm_up"]:
                load(message["warm_up"])()
        except Exception as error:  # the boundary: the pool turns it into a QuintainError
            self._tell({"kind": "error", "message": one_line(f"{type(error).__name__}: {error}")})
            return
        gc.collect()
        gc.freeze()  # what is shared with the workers stays out of their collections, so it stays shared
        self._tell({"kind": "ready"})

    def _spawn(self, token: int, sock: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no process or no memory left: the pool sees it as a worker that died at once
            sock.close()
            self._tell({"kind": "exited", "token": token, "status": None, "message": one_line(str(error))})
            return
        if pid == 0:
            self._become_worker(sock)
        sock.close()
        self._pids[token] = pid

    def _become_worker(self, sock: socket.socket) -> NoReturn:
        status = 1
        try:
            zygote = os.getppid()
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != zygote:  # it died before the line above
                os._exit(1)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)  # what a check function prints is nobody's log
            if self._memory_bytes:
                resource.setrlimit(resource.RLIMIT_AS, (self._memory_bytes, self._memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            assert self._check is not None
            work(sock, self._check)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        for token, pid in list(self._pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._pids[token]
                code = os.waitstatus_to_exitcode(status)
                self._tell({"kind": "exited", "token": token, "status": code, "message": ""})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the pool is gone: the next read says so
            self._control.sendall(encode(message))


def load(path: str) -> Callable[..., Any]:
    """The function at `module:function`."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def work(sock: socket.socket, check: Check) -> None:
    """Answer items on `sock` until its other end closes, or an item has left this process unfit."""
    reader = FrameReader()
    sock.setblocking(True)
    # The first item's time starts now, not when the fork was asked for.
    sock.sendall(encode({"hello": os.getpid()}))
    while data := sock.recv(1 << 16):
        reader.feed(data)
        for message in messages(reader):
            limit_cpu(message["deadline_s"])
            started = time.monotonic()
            reply, fit = judge(check, message["item"])
            about = {"id": message["id"], "elapsed_s": time.monotonic() - started, "fit": fit}
            try:
                frame = encode(reply | about)
            except (TypeError, ValueError, OverflowError) as error:
                unsent = f"the check gave what cannot be sent: {type(error).__name__}: {error}"
                frame = encode({"crash": one_line(unsent)} | about)
            sock.sendall(frame)
            if not fit:
                return


def judge(check: Check, item: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The reply to `item`, and whether this process may take another one."""
    try:
        return {"verdict": check(item)}, True
    except (MemoryError, RecursionError) as error:
        what = "out of memory" if isinstance(error, MemoryError) else "the recursion went too deep"
        return {"crash": f"{type(error).__name__}: {what}"}, False
    except Exception as error:  # the boundary: whatever the check raises is this item's crash
        return {"crash": one_line(f"{type(error).__name__}: {error}")}, True


def limit_cpu(deadline_s: float) -> None:
    """Let the next item use its deadline, and some, of processor time; then SIGXCPU ends the worker."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + deadline_s) + CPU_GRACE_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
