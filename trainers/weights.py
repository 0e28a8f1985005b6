"""Handing new weights to the engine's process, through shared memory.

Invariants: a version's file is complete before its path is given away; the file of the version in force stays until
the next one is; the folder is removed with the run, by the rollout server where the trainer was killed, and by the
next run where both were.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from quintain.failure import QuintainError
from quintain.rollout.engines.base import Weights
from quintain.rollout.leftovers import PREFIX, sweep


class WeightStore:
    """Writes versions into a folder of its own, in shared memory where there is room, else under `fallback`."""

    def __init__(self, fallback: Path, *, need_bytes: int, shared: Path = Path("/dev/shm")) -> None:
        roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 3 * need_bytes
        root = shared if roomy else fallback
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))

    def write(self, tensors: dict[str, Tensor], version: int) -> Weights:
        """Write `version`; the one before the last is removed."""
        from safetensors.torch import save_file

        folder = self.folder / f"v{version}"
        folder.mkdir(exist_ok=True)
        try:
            save_file(tensors, folder / "model.safetensors")
        except (OSError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise QuintainError(f"cannot write the weights of version {version} to {self.folder}: {error}") from None
        for old in self.folder.iterdir():
            if old.name not in (f"v{version}", f"v{version - 1}"):
                shutil.rmtree(old, ignore_errors=True)
        return Weights(folder, version)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
