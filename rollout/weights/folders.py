"""Folders of published weights: each is somebody's, and what dead trainers have left is removed.

What always holds: a folder is its owner's for as long as that process lives, however it ends, wherever it runs: the
owner holds a lock on a file in it, which the kernel lets go. (A process id would mean nothing to another container
that shares the folder's root.) What has no such file is not ours to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "quintain-weights-"
LOCK = "owner.lock"


class OwnedFolder:
    """A new folder in `root` at `path`, this process's until `close`."""

    def __init__(self, root: Path) -> None:
        draft = Path(tempfile.mkdtemp(prefix=f".{PREFIX}{os.getpid()}-", dir=root))  # unseen until it is locked
        self._lock = os.open(draft / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = draft.rename(root / draft.name.removeprefix("."))

    def close(self) -> None:
        """Remove it. Closing twice is fine."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(root: Path) -> None:
    """Remove the folders in `root` whose owner is gone."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or somebody else sweeps it
            lock = os.open(folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
