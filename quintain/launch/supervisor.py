"""Launching the servers of a run, and keeping them alive exactly as long as the run.

Invariants:
- every child holds this process's lifeline: when this process ends, by `kill -9` too, so do they;
- a child that dies is started again at the same address, at most `restarts` times, and then the run is told why;
- once `stop` has begun no child is started, and when it returns none is left;
- what a child prints is kept in the run's `logs/`; its last line is quoted when it does not come up.

Children live in sessions of their own, so Ctrl-C reaches only the trainer, which stops them in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quintain.failure import QuintainError, one_line
from quintain.lifeline import Lifeline

STOP_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server to run: `command(port)` is its argv; it prints {"event": "ready", "url": ...} when it answers.

    What it prints as {"event": "progress", "text": ...}, before or after, is reported to whoever runs it.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    ready_s: float = 180.0
    restarts: int | None = None
    """How often it is started again; None is as often as the supervisor's others."""


class Server:
    """One supervised server process."""

    def __init__(self, spec: ServerSpec, lifeline: Lifeline, report: Callable[[str], None] = lambda text: None) -> None:
        self.spec, self.url, self._report = spec, "", report
        self.restarted = 0
        self._lifeline = lifeline
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._stopped = False

    @property
    def pid(self) -> int:
        """The process id of the server now running."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it is ready. QuintainError with its last words where it does not come up."""
        port = urlsplit(self.url).port or 0
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self._starting, self.spec.log.open("ab") as log:
            if self._stopped:
                raise QuintainError(f"the {self.spec.name} was stopped")
            self._process = subprocess.Popen(
                list(self.spec.command(port)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._lifeline.fd],
                env={**_plain(os.environ), **self.spec.environ, **self._lifeline.environ()},
            )
        ready = threading.Event()
        threading.Thread(target=self._read, args=(self._process, ready), daemon=True).start()
        if not ready.wait(self.spec.ready_s) or not self.url:
            self.stop()
            raise QuintainError(f"the {self.spec.name} did not come up: {self.last_words()}")

    def _read(self, process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        """Keep what the server prints, and note the address in its ready line."""
        assert process.stdout is not None
        with self.spec.log.open("ab") as out:
            for line in process.stdout:
                out.write(line)
                out.flush()
                event = _event(line)
                if event.get("event") == "progress":
                    self._report(str(event.get("text")))
                elif event.get("event") == "ready" and not ready.is_set():
                    self.url = event["url"]
                    ready.set()
        process.wait()
        ready.set()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit code, or None if it still runs after `timeout_s`."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask it to end, then end it and all of its process group. It is not started again."""
        with self._starting:
            self._stopped = True
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            if self.wait(STOP_GRACE_S) is None:
                process.kill()
                process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line it printed."""
        try:
            lines = self.spec.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return one_line(lines[-1].removeprefix("Error: ") if lines else "it printed nothing")


class Supervisor:
    """Starts servers in order and keeps them up. `check` raises in the caller's thread when one is beyond help."""

    def __init__(self, *, restarts: int, report: Callable[[str], None]) -> None:
        self._lifeline = Lifeline()
        self._restarts, self._report = restarts, report
        self._servers: list[Server] = []
        self._broken: QuintainError | None = None
        self._adding, self._stopping = threading.Lock(), threading.Event()

    def start(self, spec: ServerSpec) -> Server:
        """Start a server and watch over it. Raises QuintainError where it does not come up, or after `stop`."""
        server = Server(spec, self._lifeline, self._report)
        with self._adding:
            if self._stopping.is_set():
                raise QuintainError(f"the {spec.name} is not started: the run is stopping")
            self._servers.append(server)
        server.start()
        threading.Thread(target=self._watch, args=(server,), name=f"watch {spec.name}", daemon=True).start()
        return server

    def start_all(self, specs: Sequence[ServerSpec]) -> list[Server]:
        """Start servers side by side. As `start`, and where one does not come up all are stopped."""
        with ThreadPoolExecutor(max(1, len(specs))) as beside:
            starting = [beside.submit(self.start, spec) for spec in specs]
            try:
                for each in as_completed(starting):
                    each.result()
            except BaseException:
                self.stop()  # one that is still coming up is not waited for
                raise
        return [each.result() for each in starting]

    def check(self) -> None:
        """Raise QuintainError if a server is gone for good."""
        if self._broken is not None:
            raise self._broken

    def stop(self) -> None:
        """Stop all servers, the last started first."""
        with self._adding:
            self._stopping.set()
        for server in reversed(self._servers):
            server.stop()
        self._lifeline.close()

    def _watch(self, server: Server) -> None:
        while True:
            code = server.wait()
            if self._stopping.is_set():
                return
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            restarts = self._restarts if server.spec.restarts is None else server.spec.restarts
            if code == 0 and restarts == 0:  # it has done its work
                return
            if server.restarted >= restarts:
                self._broken = QuintainError(
                    f"the {server.spec.name} ended ({how}) after {server.restarted} restarts: {server.last_words()};"
                    f" see {server.spec.log}, then go on with --resume"
                )
                return
            server.restarted += 1
            self._report(f"the {server.spec.name} ended ({how}): starting it again")
            try:
                server.start()
            except QuintainError as error:
                if not self._stopping.is_set():
                    self._broken = error
                return


def _event(line: bytes) -> dict[str, Any]:
    """The event that a line tells of, empty where it is any other line."""
    try:
        event = json.loads(line) if line.startswith(b"{") else {}
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what makes a process one rank of several: a server is none."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environ.items() if name not in ranks and not name.startswith("TORCHELASTIC")}


def share_cores() -> None:
    """Have the CPU threads of torch wait asleep, in this process and its children. Call it before torch.

    By default they spin for long: as soon as another process wants a core, such as the engine's while the trainer
    works, every operation waits for a time slice, and small ones take twenty times longer. Spinning for some
    microseconds only (libgomp's count) keeps most of what spinning gains between small operations.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def python_module(module: str, *args: str) -> list[str]:
    """The argv that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *args]
