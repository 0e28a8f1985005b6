"""Folders of published weights, and removing those whose run is gone.

A folder's name holds the process id of the trainer that owns it: while that process lives, nobody else removes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

PREFIX = "quintain-weights-"


def sweep(root: Path) -> None:
    """Remove the folders in `root` whose trainer is gone."""
    for folder in root.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether process `pid` runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
