"""Makes `.venv` and installs quintain, with the extras that its tests need, into it, once per project state.

What always holds:
- When nothing has changed since the last success (same files, same Python, same place), it does nothing and
  takes a fraction of a second; a run that failed leaves no stamp, so the next one goes on.
- On a machine without an NVIDIA GPU, no CUDA package is installed: what pip would fetch is looked at first,
  and when it is gigabytes of CUDA the script stops with one line that says what to do.
- uv installs, in a third of the time, from where pip would; where it cannot be had or fails, and where pip has been
  told what it does not know, pip does it.
- Of processes that want the same environment at once one makes it and the others wait; one that was stopped
  before it had a pip is made anew.
- Only the standard library is used, and any Python from 3.11 on will do. `setup_venv.sh` finds one.

`setup_vllm.py` makes vLLM's environment from the same parts.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "math,schema,ifeval,reasoning-gym,renderers,docker,mcp,textarena,train,dev"
TORCH = "torch==2.13.0"  # the version the tests ran with; pyproject.toml allows many more
VERSION_OF_TORCH = "import importlib.metadata; print(importlib.metadata.version('torch'))"
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


class Refused(Exception):
    """An expected failure; its text is the one line the user reads."""


def wanted_state() -> dict[str, str]:
    """What a finished environment must have been made from: whatever decides which packages it holds.

    Of pyproject.toml that is not all: a new rule for ruff is no reason to install anything again.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode())
    for name in ("setup.py", "scripts/setup_venv.py"):
        digest.update((ROOT / name).read_bytes())
    return {
        "inputs_sha256": digest.hexdigest(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "root": str(ROOT),  # a moved environment has dead paths in its scripts
    }


def has_nvidia_gpu() -> bool:
    if Path("/proc/driver/nvidia").exists():
        return True
    command = shutil.which("nvidia-smi")
    return command is not None and subprocess.run([command], capture_output=True, check=False).returncode == 0


def cuda_packages(report: Mapping[str, Any]) -> list[str]:
    """The CUDA packages that a pip installation report (`--report`) wants to install, by name."""
    names = (entry["metadata"]["name"].lower() for entry in report["install"])
    return sorted(name for name in names if name.startswith(CUDA_PREFIXES))


VARIABLES = {  # of uv, for a setting of pip's, and what stands between several values there
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
IGNORED = ("disable-pip-version-check", "no-input", "progress-bar", "quiet", "root-user-action")


def uv_settings(listed: str) -> dict[str, str] | None:
    """uv's variables for what `pip config list` says; None where that is more than uv knows."""
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the best of all indexes
    lines = sorted(listed.splitlines(), key=lambda line: line.startswith(":env:"))  # variables have the last word
    for key, _, value in (line.partition("=") for line in lines):
        name = key.rpartition(".")[2]
        if name in VARIABLES:
            variable, between = VARIABLES[name]
            found[variable] = between.join(str(ast.literal_eval(value)).split())
        elif name not in IGNORED:
            return None
    return found


class Venv:
    """A virtual environment at `path` that `script` makes; where it is finished, a stamp says what from."""

    def __init__(self, path: Path, script: str) -> None:
        self.path, self.script = path, script

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.path / "quintain-setup.json"

    def say(self, text: str) -> None:
        print(f"{self.script}: {text}", flush=True)

    def is_finished(self, state: Mapping[str, str]) -> bool:
        return self.stamped_state() == state and self.python.exists()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is inside for this environment; whoever waited must look again whether it is finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f"{self.path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def finish(self, state: Mapping[str, str]) -> None:
        """Compiles what is installed (packages may have files that no Python reads: that is nobody's failure)."""
        compiles = [sys.executable, "-m", "compileall", "-qq", "-j", "0", str(self.path / "lib")]
        subprocess.run(compiles, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.stamp.write_text(json.dumps(state, indent=2) + "\n")

    def stamped_state(self) -> dict[str, str]:
        """What the last successful run left, or nothing."""
        try:
            state = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def pip(self, *arguments: str, capture: bool = False) -> str:
        """Runs the environment's pip; its output goes to the terminal, or is returned when `capture` is set."""
        loud = arguments[0] == "config" or (sys.stdout.isatty() and not capture)  # bars are for people, not for logs
        quiet = [] if loud else ["-qq"]
        later = ["--no-compile"] if arguments[0] == "install" else []  # pip does it on one core, `finish` on all
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *quiet, *arguments, *later]
        result = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None)
        if result.returncode != 0:
            raise Refused(f"`pip {' '.join(arguments)}` failed with exit code {result.returncode}; see above")
        return result.stdout or ""

    def install(self, *arguments: str) -> None:
        """`pip install`, by uv where it can: that takes a third of the processor's time."""
        if not self.uv_install(*arguments):
            self.pip("install", *arguments)

    def uv_install(self, *arguments: str) -> bool:
        """Whether the uv of quintain's own environment could install that, from where its pip would take it."""
        uv = VENV.path / "bin" / "uv"
        settings = uv_settings(VENV.pip("config", "list", capture=True)) if uv.exists() else None
        if settings is None:
            return False
        quiet = [] if sys.stdout.isatty() else ["--quiet"]
        command = [str(uv), "pip", "install", "--python", str(self.python), *quiet, *arguments]
        done = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **settings})
        if done.returncode != 0:
            self.say("uv could not install that: asking pip")
        return done.returncode == 0

    def ask(self, code: str) -> str:
        """What `code` prints in the environment's Python; empty when that does not run or the code fails."""
        try:
            result = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    def make(self, state: Mapping[str, str]) -> None:
        """An environment of the running Python; one of another version, from elsewhere or without pip is replaced."""
        if self.python.exists() or self.python.is_symlink():
            found = self.ask("import pip, sys; print('%d.%d' % sys.version_info[:2])")
            home = self.stamped_state().get("root", state["root"])
            if found == state["python"] and home == state["root"]:
                return
            self.say(f"replacing {self.path} (Python {found or 'broken'}, made for {home})")
        elif self.path.exists() and any(self.path.iterdir()):
            raise Refused(f"{self.path} exists and is not a virtual environment; move it away")
        self.say(f"making {self.path} with Python {sys.version.split()[0]}")
        base = getattr(sys, "_base_executable", sys.executable)  # never from inside what is being replaced
        if subprocess.run([base, "-m", "venv", "--clear", str(self.path)], check=False).returncode != 0:
            raise Refused(f"{base} could not make {self.path}; see above")

    def install_cpu_torch(self) -> None:
        """Installs torch's CPU build; refuses, before anything large is fetched, where only CUDA's can be had."""
        if known := self.ask(VERSION_OF_TORCH):
            self.say(f"torch {known} is installed already")
            return
        index = os.environ.get("TORCH_INDEX_URL")
        where = ["--index-url", index] if index else []
        self.say(f"no NVIDIA GPU here: looking for the CPU build of {TORCH}")
        self.pip("install", "--upgrade", "pip>=24")  # older ones fetch whole wheels for a dry run
        report = json.loads(self.pip("install", "--dry-run", "--report", "-", *where, TORCH, capture=True))
        cuda = cuda_packages(report)
        if not cuda:
            self.pip("install", *where, TORCH)
            return
        self.say(f"pip would bring {len(cuda)} CUDA packages ({cuda[0]}, ...); asking uv for the CPU build")
        self.pip("install", "uv")  # it knows where PyTorch keeps its CPU wheels
        uv = [
            str(self.path / "bin" / "uv"),
            "pip",
            "install",
            "--python",
            str(self.python),
            "--torch-backend",
            "cpu",
            TORCH,
        ]
        if subprocess.run(uv, check=False).returncode != 0:
            raise Refused(
                f"no CPU build of {TORCH} can be had here, and CUDA's is gigabytes that a machine without an "
                "NVIDIA GPU cannot use. Set TORCH_INDEX_URL to an index of torch's CPU wheels and run make again."
            )


VENV = Venv(ROOT / ".venv", "setup_venv")


def main() -> int:
    try:
        state = wanted_state()
        if VENV.is_finished(state):
            return 0
        with VENV.alone():
            if VENV.is_finished(state):
                return 0
            VENV.make(state)
            VENV.stamp.unlink(missing_ok=True)
            if not has_nvidia_gpu():
                VENV.install_cpu_torch()
            VENV.say(f"installing quintain[{EXTRAS}] (editable)")
            with suppress(Refused):  # there is none for this machine: pip does it all
                VENV.pip("install", "--only-binary", "uv", "uv")
            VENV.install("--editable", f".[{EXTRAS}]")
            VENV.finish(state)
    except (Refused, OSError) as error:
        print(f"setup_venv: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup_venv: interrupted; run make again to go on", file=sys.stderr)
        return 130
    VENV.say(f"{VENV.path} is ready")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
