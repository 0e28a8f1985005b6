"""Real verifier services for the tests: processes of their own, ended with the test, whatever happens to it."""

from __future__ import annotations

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

from quintain.lifeline import Lifeline
from quintain.verifiers import registry
from quintain.verifiers.service.limits import ServiceLimits

HERE = Path(__file__).parent
PROBE = "probe_verifier:make_probe_verifier"

_SERVE = """
import json, sys
from quintain.verifiers import registry
registry.BUILT_IN = {**registry.BUILT_IN, "probe": "probe_verifier:make_probe_verifier"}
from quintain.serving.tokens import Tokens
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.policy import AccessPolicy
from quintain.verifiers.service.serve import serve_verifiers
given = json.loads(sys.argv[1])
serve_verifiers(
    json_ready=True,
    port=given["port"],
    limits=ServiceLimits(**given["limits"]),
    tokens=Tokens(given["tokens"]),
    policy=AccessPolicy(frozenset(given["allow"]), given["presets"], workers=given["workers"]),
)
"""


class Service:
    """A service process and what it has written. It knows the verifier `probe`."""

    def __init__(
        self,
        log: Path,
        *,
        limits: ServiceLimits | None = None,
        tokens: dict[str, str] | None = None,
        allow: tuple[str, ...] = (),
        presets: dict[str, Any] | None = None,
        workers: int = 1,
        port: int = 0,
    ) -> None:
        self.log = log
        given = {
            "limits": asdict(limits or ServiceLimits()),
            "tokens": tokens or {},
            "allow": allow,
            "presets": presets or {},
            "workers": workers,
            "port": port,
        }
        self.lifeline = Lifeline()
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                pass_fds=(self.lifeline.fd,),
                env=os.environ | self.lifeline.environ() | {"PYTHONPATH": str(HERE)},
            )
        headers = {"authorization": f"Bearer {next(iter(tokens.values()))}"} if tokens else {}
        self._http = httpx.Client(trust_env=False, timeout=60, headers=headers)
        self.lines: list[str] = []
        self.url = ""

    def wait_ready(self, timeout_s: float = 60.0) -> Service:
        """Read the ready line."""
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.lines.append(self.process.stdout.readline())
        assert self.lines, f"no ready line; the log says: {self.log.read_text()}"
        assert self.lines[0], f"the service ended: {self.log.read_text()}"
        self.url = json.loads(self.lines[0])["url"]
        self._http.base_url = httpx.URL(self.url)
        return self

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """What the service answers, with the first token if there are some."""
        return self._http.post(path, json=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self._http.get(path, headers=headers)

    def verify(self, verifier: str, answers: list[str], **more: Any) -> list[dict[str, Any]]:
        """The verdicts on `answers`, whose reference is "r"."""
        items = [{"answer": answer, "reference": "r"} for answer in answers]
        response = self.post("/v1/verify", {"verifier": verifier, "items": items, **more})
        assert response.status_code == 200, response.text
        verdicts: list[dict[str, Any]] = response.json()["verdicts"]
        return verdicts

    def tree(self) -> list[psutil.Process]:
        """The service and every process below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def metric(self, name: str) -> float:
        """The value of the metric that the text `name` is, labels included; 0 where it was never counted."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"quintain_verify_{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait_metric(self, name: str, value: float, timeout_s: float = 60.0) -> None:
        """Wait until the metric `name` has the value."""
        wait_for(lambda: self.metric(name) == value, f"{name} is {value}, not {self.metric(name)}", timeout_s)

    def stop(self, wait_s: float = 60) -> int:
        """Ask it to stop, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(wait_s)
        finally:
            self.lifeline.close()
            self._http.close()
            if self.process.stdout is not None:
                self.process.stdout.close()


def wait_for(holds: Callable[[], bool], what: str = "it", timeout_s: float = 60.0) -> None:
    """Wait until `holds()`."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, f"waited {timeout_s:g} s until {what}"
        time.sleep(0.005)


Serve = Callable[..., Service]


def _serving(folder: Path) -> Iterator[Serve]:
    services: list[Service] = []

    def serve(**arguments: Any) -> Service:
        services.append(Service(folder / f"service-{len(services)}.log", **arguments))
        return services[-1].wait_ready()

    try:
        yield serve
    finally:
        for service in services:
            service.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(limits=..., tokens=..., ...)`: a service for one test."""
    yield from _serving(tmp_path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the usual limits, for a whole module."""
    for serve_one in _serving(tmp_path_factory.mktemp("service")):
        yield serve_one()


@pytest.fixture
def waiting() -> Callable[..., None]:
    """`waiting(holds, what)`: waits until `holds()`."""
    return wait_for


@pytest.fixture
def gone() -> Callable[[list[psutil.Process]], list[int]]:
    """`gone(processes)`: waits for their end, and gives the ids of those that are still alive after a while."""

    def wait(processes: list[psutil.Process]) -> list[int]:
        _, alive = psutil.wait_procs(processes, timeout=60)
        return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    return wait


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the probe, which this process knows for the length of a test."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "probe": PROBE})
    return "probe"
