"""`quintain` in processes of its own that need not import torch first: they are forks of one that has.

The imports of a run's trainer take ten times longer than what a tiny model learns in a test. Everything else is as
from a shell: a session of its own, its own environment and working folder, real signals, real exit codes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
WAITS_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}  # `share_cores`, before torch is loaded
LOADED = (
    "quintain.launch.session",
    "quintain.launch.train",
    "quintain.rollout.server.process",
    "peft",
    "matplotlib.pyplot",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)

_context = multiprocessing.get_context("forkserver")


class Program:
    """`quintain ARGV...`, with as much of `subprocess.Popen` as tests use. What it prints is in files of `folder`."""

    def __init__(self, argv: Sequence[str], folder: Path, *, apart: bool = False, **environ: str) -> None:
        """Start it; with `apart` standard error is kept apart from standard output."""
        self._out = folder / f"stdout-{len(list(folder.glob('stdout-*')))}"
        self._err = self._out.with_name(self._out.name.replace("out", "err")) if apart else self._out
        environ = {**os.environ, **ENVIRON, **environ}
        _start_server()
        self._process = _context.Process(target=_become, args=(list(argv), environ, str(self._out), str(self._err)))
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
        return self._out.read_text(), self._err.read_text() if self._err != self._out else ""


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


def _become(argv: list[str], environ: dict[str, str], out: str, err: str) -> None:
    """In the fork: run the command line."""
    os.setsid()
    for descriptor, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    sys.argv = ["quintain", *argv]
    from quintain.cli import main

    main(argv)
