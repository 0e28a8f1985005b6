"""Shared by the benchmarks: virtual environments for peers, and the last line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def peer_python(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of a virtual environment with `packages`, made once and kept in `.venvs/`.

    torch comes first and pinned, so that a machine without a GPU gets the CPU build.
    """
    key = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    folder = ROOT / ".venvs" / f"{name}-{key}"
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        print(f"making {folder} with {', '.join(packages)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for package in packages:
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        done.touch()
    return python


def vllm_python() -> str:
    """The interpreter of vLLM's environment, which scripts/setup_vllm.py makes once."""
    script = ROOT / "scripts" / "setup_vllm.py"
    made = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise SystemExit("vLLM's environment could not be made; see above")
    return made.stdout.split()[-1]


def report(benchmark: str, ratios: Mapping[str, float], detail: Mapping[str, Any]) -> None:
    """Print the one JSON object that ends every benchmark."""
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "ratios": rounded, "detail": dict(detail)}))
