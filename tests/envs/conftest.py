"""Real servers for the tests: processes of their own, ended with the test, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from quintain.envs import Action, EnvClient, Environment, Failure, FailureError
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.lifeline import Lifeline

SAMPLES = Path(__file__).parent / "samples.py"
LOOK_S = 0.005
"""Between two looks at what is waited for, so that the looking leaves it the processor."""

_SERVE = """
import json, sys
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.serving.serve import serve_env
from quintain.failure import QuintainError
arguments = json.loads(sys.argv[1])
limits = EnvironmentLimits(**arguments.pop("limits"))
try:
    serve_env(arguments.pop("spec"), json_ready=True, limits=limits, **arguments)
except QuintainError as error:
    sys.exit(str(error))
"""


class Server:
    """A server process and what it has written."""

    def __init__(self, spec: str, log: Path, *, limits: EnvironmentLimits | None = None, **arguments: Any) -> None:
        self.log = log
        arguments = {"workers": 1, "spec": spec, "limits": asdict(limits or EnvironmentLimits()), **arguments}
        self.lifeline = Lifeline()
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, json.dumps(arguments)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                pass_fds=(self.lifeline.fd,),
                env=os.environ | self.lifeline.environ(),
            )
        self._http = httpx.Client(verify=False, trust_env=False)
        self.lines: list[str] = []
        self.url = ""

    def wait_ready(self, timeout_s: float = 60.0) -> Server:
        """Read the ready line."""
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.lines.append(self.process.stdout.readline())
        assert self.lines, f"no ready line; the log says: {self.log.read_text()}"
        assert self.lines[0], f"the server ended: {self.log.read_text()}"
        self.url = json.loads(self.lines[0])["url"]
        return self

    def client(self, **options: Any) -> EnvClient:
        return EnvClient(self.url, **options)

    def tree(self) -> list[psutil.Process]:
        """The server and every process below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def metric(self, name: str) -> float:
        """The value of the metric that the text `name` is, labels included; 0 where it was never counted."""
        for line in self._http.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"quintain_env_{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait_metric(self, name: str, holds: Callable[[float], bool], timeout_s: float = 60.0) -> float:
        """Wait until the metric `name` is as wanted; how long that took."""
        began = time.monotonic()
        while not holds(self.metric(name)):
            assert time.monotonic() - began < timeout_s, f"{name} is {self.metric(name)}"
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def stop(self) -> int:
        """Ask it to stop, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.lifeline.close()
            self._http.close()
            if self.process.stdout is not None:
                self.process.stdout.close()


Serve = Callable[..., Server]


@pytest.fixture
def until() -> Callable[..., Any]:
    """`await until(holds)`: waits, while the event loop turns, until `holds()` is true."""

    def watch(holds: Callable[[], bool], timeout_s: float) -> None:
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < timeout_s
            time.sleep(LOOK_S)

    async def wait(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        await asyncio.to_thread(watch, holds, timeout_s)

    return wait


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[Serve]:
    servers: list[Server] = []

    def serve(spec: str, **arguments: Any) -> Server:
        if spec[0].isupper():
            spec = f"{SAMPLES}:{spec}"
        servers.append(Server(spec, folder / f"server-{len(servers)}.log", **arguments))
        return servers[-1].wait_ready()

    try:
        yield serve
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve("Probe", limits=..., ...)`: a server of a sample environment, for one test."""
    with _serving(tmp_path) as serving:
        yield serving


@pytest.fixture(scope="module")
def serve_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """The same for a whole module."""
    with _serving(tmp_path_factory.mktemp("servers")) as serving:
        yield serving


@pytest.fixture(params=["socket", "http"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this process's clients ask servers over: their socket, or HTTP, where there is no socket."""
    if request.param == "http":
        monkeypatch.setattr("quintain.calling.websocket.SOCKET_PATH", "/v1/none")
    name: str = request.param
    return name


@pytest.fixture
def opened() -> Callable[..., Any]:
    """`await opened(client, task=0)`: an episode on a task of the split "train"."""

    async def open_one(client: EnvClient, task: int = 0) -> Environment:
        env = client.episode()
        await env.reset(client.tasks("train")[task], seed=0)
        return env

    return open_one


@pytest.fixture
def failed() -> Callable[..., Any]:
    """`await failed(env, text)`: the failure of a step that must fail."""

    async def step(env: Environment, text: str) -> Failure:
        with pytest.raises(FailureError) as error:
            await env.step(Action.text(text))
        return error.value.failure

    return step


def wait_gone(processes: list[psutil.Process], timeout_s: float = 60.0) -> list[int]:
    """Wait until the processes have ended; the ids of those that have not."""
    until = time.monotonic() + timeout_s
    alive = []
    for process in processes:
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
        os.close(handle)
        if not ended and process.is_running():
            alive.append(process.pid)
    return alive


@pytest.fixture
def gone() -> Callable[..., list[int]]:
    """`gone(processes)`: waits for their end, and gives those that are still alive after a while."""
    return wait_gone
