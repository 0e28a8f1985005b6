"""A vLLM server of our own, as a process: started, looked at, ended with everything it has started.

Invariants: it ends with this process, by `kill -9` too (its `host` holds a lifeline); `kill` returns when nothing of it
is left that could hold memory or the port; what it prints is kept in its log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quintain.failure import QuintainError, one_line
from quintain.lifeline import Lifeline

KILL_S = 30.0
HOST_MODULE = "quintain.rollout.engines.vllm.host"


@dataclass(frozen=True, slots=True)
class ServerLaunch:
    """How to start a server: `python` has vLLM, `flags` are those of its command line but for host and port."""

    name: str
    python: str
    flags: Sequence[str]
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)


class Process:
    """The server that `launch` describes. Its port is chosen when it first starts, and stays the same."""

    def __init__(self, launch: ServerLaunch, lifeline: Lifeline) -> None:
        self.launch = launch
        self.port = _free_port()
        self._lifeline = lifeline
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers once it is up."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of its guard, which is the id of the group of all its processes."""
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        """Start it, in place of what is left of the one before. Returns before it answers."""
        self.kill()
        self.launch.log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.launch.python, "-m", HOST_MODULE, *self.launch.flags, "--host=127.0.0.1", f"--port={self.port}"]
        with self.launch.log.open("ab") as log:
            try:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[self._lifeline.fd],
                    env={**os.environ, **self.launch.environ, **self._lifeline.environ()},
                )
            except OSError as error:
                raise QuintainError(f"cannot start {self.launch.python}: {error.strerror or error}") from None

    @property
    def how_it_ended(self) -> str | None:
        """How the process ended, or None while it lives."""
        code = self._popen.poll() if self._popen is not None else 0
        if code is None:
            return None
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it and all it has started, at once: a server holds nothing that it would have to save."""
        if self._popen is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        deadline = time.monotonic() + KILL_S
        while _group_lives(self._popen.pid) and time.monotonic() < deadline:
            time.sleep(0.005)  # the kernel takes back gigabytes after the signal: nobody tells when it is done
        self._popen = None

    def last_words(self) -> str:
        """What the log ends with: the last line that says what went wrong, else the last one."""
        try:
            lines = self.launch.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-200:]
        except OSError:
            lines = []
        telling = [line for line in lines if "Error" in line and "Traceback" not in line]
        return one_line((telling or lines or ["it printed nothing"])[-1], 300)


def _group_lives(group: int) -> bool:
    """Whether a process of `group` still runs. One that has ended and that nobody has asked about does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _free_port() -> int:
    """A port that is free now. vLLM must be told one, so another process could take it in between; then it says so."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
