"""`quintain` in processes of its own that need not import torch first: they are forks of one that has.

The imports of a run's trainer and of its servers take ten times longer than what a tiny model learns in a test.
Everything else is as from a shell: a session of its own, its own environment, working folder, descriptors and command
line, real signals, real exit codes; and a server is the child of the process that has started it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
WAITS_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}  # `share_cores`, before torch is loaded
SERVERS = ("quintain", "quintain.rollout.server.process", "quintain.launch.ranks", "quintain.envs.workers.worker")
"""What a process may start with `python -m` that is forked."""
LOADED = (
    "quintain.cli.env",
    "quintain.launch.session",
    "quintain.launch.train",
    "quintain.launch.ranks",
    "quintain.envs.serving.server",
    "quintain.envs.workers.worker",
    "quintain.rollout.gateway.gateway",
    "quintain.rollout.engines.embedded.engine",
    "quintain.rollout.server.app",
    "quintain.rollout.server.process",
    "peft",
    "matplotlib.pyplot",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)

_PR_SET_CHILD_SUBREAPER = 36
_APART = 500
"""Descriptors from this one on are used by no program."""

_context = multiprocessing.get_context("forkserver")


class Program:
    """`quintain ARGV...`, with as much of `subprocess.Popen` as tests use. What it prints is in files of `folder`."""

    def __init__(
        self, argv: Sequence[str], folder: Path, *, apart: bool = False, mounts_of: int | None = None, **environ: str
    ) -> None:
        """Start it; with `apart` standard error is kept apart from standard output, with `mounts_of` it sees the file
        systems that the process of that id sees."""
        self.out = folder / f"stdout-{len(list(folder.glob('stdout-*')))}"
        self.err = self.out.with_name(self.out.name.replace("out", "err")) if apart else self.out
        for file in (self.out, self.err):
            file.touch()
        environ = {**os.environ, **ENVIRON, **environ}
        _start_server()
        become = (list(argv), environ, str(self.out), str(self.err), mounts_of)
        self._process = _context.Process(target=_become, args=become)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("quintain", timeout or 0.0)
        return code

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed until its end: (standard output, standard error)."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text() if self.err != self.out else ""


def _start_server() -> None:
    """The process that is forked, if it does not run yet: it takes its environment from this one."""
    _context.set_forkserver_preload(list(LOADED))
    before = dict(os.environ)
    os.environ.update(ENVIRON | WAITS_ASLEEP)
    try:
        from multiprocessing.forkserver import ensure_running

        ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _become(argv: list[str], environ: dict[str, str], out: str, err: str, mounts_of: int | None) -> None:
    """In the fork: run the command line."""
    for kind in ("user", "mnt") if mounts_of is not None else ():
        theirs = f"/proc/{mounts_of}/ns/{kind}"
        if os.readlink(theirs) != os.readlink(f"/proc/self/ns/{kind}"):
            with open(theirs) as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    os.setsid()
    for descriptor, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    _as_started(["quintain", *argv], environ, ROOT)
    _fork_what_is_started()
    from quintain.cli import main

    main(argv)


def _as_started(argv: list[str], environ: dict[str, str], folder: Path | str) -> None:
    """Make this fork look like what a shell, or a server's launcher, would have started."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    sys.argv = argv
    _show(argv)


def _show(argv: list[str]) -> None:
    """Have others see `argv` as the command line of this fork."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = "\0".join(argv).encode()[: end - start - 1]
    ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def _fork_what_is_started() -> None:
    """Have this process's `subprocess` ask a child, which stays as it is now, for a fork in place of one of SERVERS.

    The fork's parent ends at once, so that this process, which is the reaper of those below it, becomes its parent.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _show(["forks"])
        _fork_when_asked(theirs)
    theirs.close()
    one_at_a_time, execute = threading.Lock(), subprocess._fork_exec

    def fork(args: Sequence[str], *more: Any) -> int:
        words = [os.fsdecode(word) for word in args]
        module = words[words.index("-m") + 1] if words[0] == sys.executable and "-m" in words else ""
        if module not in SERVERS:
            return int(execute(args, *more))
        _, _, keep, folder, variables, stdin, _, _, stdout, _, stderr, _, problem, _, session, group, *_ = more
        environ = dict(map(os.fsdecode, line.split(b"=", 1)) for line in variables or ()) or dict(os.environ)
        standard = [at if fd == -1 else fd for at, fd in enumerate((stdin, stdout, stderr))]
        kept = [fd for fd in keep if fd != problem]
        asked = [words, environ, os.fspath(folder or os.getcwd()), session, group, [0, 1, 2, *kept]]
        with one_at_a_time:
            socket.send_fds(ours, [json.dumps(asked).encode()], [*standard, *kept])
            return int(ours.recv(64))

    subprocess._fork_exec = fork


def _fork_when_asked(asking: socket.socket) -> NoReturn:
    """Fork what is asked for, for as long as somebody may ask."""
    while True:
        asked, fds, _, _ = socket.recv_fds(asking, 1 << 20, 64)
        if not asked:
            os._exit(0)
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            if (child := os.fork()) == 0:
                _serve(*json.loads(asked), fds)
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        asking.send(os.read(reading, 64))
        for fd in (reading, writing, *fds):
            os.close(fd)


def _serve(
    words: list[str],
    environ: dict[str, str],
    folder: str,
    session: bool,
    group: int,
    numbers: list[int],
    fds: list[int],
) -> NoReturn:
    """In the fork: be `python -m MODULE ...` with the descriptors `fds` under their `numbers`."""
    code = 1
    try:
        apart = [fcntl.fcntl(fd, fcntl.F_DUPFD, _APART) for fd in fds]
        os.closerange(3, _APART)
        for fd, number in zip(apart, numbers, strict=True):
            os.dup2(fd, number)
            os.close(fd)
        if session:
            os.setsid()
        elif group >= 0:
            os.setpgid(0, group)
        resource_tracker._resource_tracker.__init__()  # its descriptor is closed
        _as_started(words, environ, folder)
        module, *sys.argv[1:] = words[words.index("-m") + 1 :]
        if module == "quintain":  # `env serve`, which starts workers
            _fork_what_is_started()
        else:
            del sys.modules[module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
