"""Makes `.venv` and installs quintain, with the extras that its tests need, into it, once per project state.

What always holds:
- When nothing has changed since the last success (same files, same Python, same place), it does nothing and
  takes a fraction of a second; a run that failed leaves no stamp, so the next one goes on.
- On a machine without an NVIDIA GPU, no CUDA package is installed: what pip would fetch is looked at first,
  and when it is gigabytes of CUDA the script stops with one line that says what to do.
- Only the standard library is used, and any Python from 3.11 on will do. `setup_venv.sh` finds one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "quintain-setup.json"
EXTRAS = "math,schema,ifeval,reasoning-gym,docker,train,dev"
TORCH = "torch==2.13.0"  # the version the tests ran with; pyproject.toml allows many more
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


class Refused(Exception):
    """An expected failure; its text is the one line the user reads."""


def say(text: str) -> None:
    print(f"setup_venv: {text}", flush=True)


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


def stamped_state() -> dict[str, str]:
    """What the last successful run left, or nothing."""
    try:
        state = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def has_nvidia_gpu() -> bool:
    if Path("/proc/driver/nvidia").exists():
        return True
    command = shutil.which("nvidia-smi")
    return command is not None and subprocess.run([command], capture_output=True, check=False).returncode == 0


def cuda_packages(report: Mapping[str, Any]) -> list[str]:
    """The CUDA packages that a pip installation report (`--report`) wants to install, by name."""
    names = (entry["metadata"]["name"].lower() for entry in report["install"])
    return sorted(name for name in names if name.startswith(CUDA_PREFIXES))


def pip(*arguments: str, capture: bool = False) -> str:
    """Runs the environment's pip; its output goes to the terminal, or is returned when `capture` is set."""
    quiet = [] if sys.stdout.isatty() and not capture else ["-qq"]  # bars are for people, not for logs
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *quiet, *arguments]
    result = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if result.returncode != 0:
        raise Refused(f"`pip {' '.join(arguments)}` failed with exit code {result.returncode}; see above")
    return result.stdout or ""


def ask_venv(code: str) -> str:
    """What `code` prints in the environment's Python; empty when that does not run or the code fails."""
    try:
        result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def make_venv(state: Mapping[str, str]) -> None:
    """An environment of the running Python at VENV; one of another version or from elsewhere is replaced."""
    if PYTHON.exists() or PYTHON.is_symlink():
        found = ask_venv("import sys; print('%d.%d' % sys.version_info[:2])")
        home = stamped_state().get("root", state["root"])
        if found == state["python"] and home == state["root"]:
            return
        say(f"replacing {VENV} (Python {found or 'broken'}, made for {home})")
    elif VENV.exists() and any(VENV.iterdir()):
        raise Refused(f"{VENV} exists and is not a virtual environment; move it away")
    say(f"making {VENV} with Python {sys.version.split()[0]}")
    base = getattr(sys, "_base_executable", sys.executable)  # never from inside what is being replaced
    if subprocess.run([base, "-m", "venv", "--clear", str(VENV)], check=False).returncode != 0:
        raise Refused(f"{base} could not make {VENV}; see above")


def install_cpu_torch() -> None:
    """Installs torch's CPU build; refuses, before anything large is fetched, where only CUDA's can be had."""
    if known := ask_venv("import importlib.metadata; print(importlib.metadata.version('torch'))"):
        say(f"torch {known} is installed already")
        return
    index = os.environ.get("TORCH_INDEX_URL")
    where = ["--index-url", index] if index else []
    say(f"no NVIDIA GPU here: looking for the CPU build of {TORCH}")
    pip("install", "--upgrade", "pip>=24")  # older ones fetch whole wheels for a dry run
    report = json.loads(pip("install", "--dry-run", "--report", "-", *where, TORCH, capture=True))
    cuda = cuda_packages(report)
    if not cuda:
        pip("install", *where, TORCH)
        return
    say(f"pip would bring {len(cuda)} CUDA packages ({cuda[0]}, ...); asking uv for the CPU build")
    pip("install", "uv")  # it knows where PyTorch keeps its CPU wheels
    uv = [
        str(VENV / "bin" / "uv"),
        "pip",
        "install",
        "--python",
        str(PYTHON),
        "--torch-backend",
        "cpu",
        TORCH,
    ]
    if subprocess.run(uv, check=False).returncode != 0:
        raise Refused(
            f"no CPU build of {TORCH} can be had here, and CUDA's is gigabytes that a machine without an "
            "NVIDIA GPU cannot use. Set TORCH_INDEX_URL to an index of torch's CPU wheels and run make again."
        )


def main() -> int:
    try:
        state = wanted_state()
        if stamped_state() == state and PYTHON.exists():
            return 0
        make_venv(state)
        STAMP.unlink(missing_ok=True)
        if not has_nvidia_gpu():
            install_cpu_torch()
        say(f"installing quintain[{EXTRAS}] (editable)")
        pip("install", "--editable", f".[{EXTRAS}]")
        STAMP.write_text(json.dumps(state, indent=2) + "\n")
    except (Refused, OSError) as error:
        print(f"setup_venv: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup_venv: interrupted; run make again to go on", file=sys.stderr)
        return 130
    say(f"{VENV} is ready")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
