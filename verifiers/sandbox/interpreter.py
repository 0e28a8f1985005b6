"""Which Python runs the tested programs, and what of the host it needs to see.

The system's Python is the first choice: it lies where every user may read. Another one, in a home folder say,
works as well, because what it needs is mounted into the sandbox.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from quintain.failure import QuintainError, one_line

SYSTEM_PYTHON: Final = "/usr/bin/python3"
OLDEST: Final = (3, 10)
ASK: Final = (
    "import ctypes, json, sys; print(json.dumps([list(sys.version_info[:2]), sys.prefix, sys.base_prefix,"
    " sys.exec_prefix, sys.base_exec_prefix, sys.executable]))"
)
TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python for the sandbox: its path, and the folders it lives in."""

    path: str
    folders: tuple[str, ...]


def find(python: str | None) -> Interpreter:
    """The interpreter called `python`, or the best one here. Raises QuintainError where it will not do."""
    candidates = [python] if python else [SYSTEM_PYTHON, sys.executable]
    troubles = []
    for candidate in candidates:
        try:
            return inspect(candidate)
        except QuintainError as error:
            troubles.append(str(error))
    raise QuintainError("; ".join(troubles))


def inspect(path: str) -> Interpreter:
    """What the Python at `path` says of itself. Raises QuintainError where it will not do."""
    wanted = f"the sandbox needs a Python {OLDEST[0]}.{OLDEST[1]} or newer with ctypes"
    try:
        done = subprocess.run(
            [path, "-I", "-c", ASK], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True
        )
        version, *folders, executable = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise QuintainError(one_line(f"{wanted}; {path} says: {said}")) from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise QuintainError(one_line(f"{wanted}; {path} does not run: {error}")) from None
    if tuple(version) < OLDEST:
        raise QuintainError(f"{wanted}; {path} is {version[0]}.{version[1]}")
    kept: list[str] = []
    for folder in [*folders, os.path.dirname(executable)]:
        if folder not in kept and not any(folder.startswith(other + "/") for other in kept):
            kept.append(folder)
    return Interpreter(executable, tuple(kept))
