"""Handing new weights to the engine's process, through shared memory.

Two files take turns. The first two versions create them; later ones are cast straight into their pages, which exist
already: nothing is allocated, and a disk that has filled up since cannot refuse.

Invariants: a version's file is complete before its path is given away; the file of the version in force is not touched
until the next one is in force; the folder is removed with the run, by the rollout server where the trainer was killed,
and by the next run where both were.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from quintain.failure import QuintainError
from quintain.rollout.engines.base import Weights
from quintain.rollout.weights.folders import OwnedFolder, sweep

FILES = 2


class WeightStore:
    """Writes versions as `dtype` into a folder of its own: in shared memory where there is room, else in `fallback`.

    Versions are given in order; every version has the same names and shapes.
    """

    def __init__(self, fallback: Path, dtype: torch.dtype, *, need_bytes: int, shared: Path = Path("/dev/shm")) -> None:
        roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 3 * need_bytes
        root = shared if roomy else fallback
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self._owned = OwnedFolder(root)
        self.folder = self._owned.path
        self._dtype = dtype
        self._mapped: dict[Path, dict[str, Tensor]] = {}

    def write(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> Weights:
        """Write `version` over the version before the last. QuintainError where the disk refuses."""
        folder = self.folder / str(version % FILES)
        if folder in self._mapped:
            for name, tensor in tensors:
                self._mapped[folder][name].copy_(tensor)
        else:
            self._mapped[folder] = self._create(folder, tensors)
        return Weights(folder, version)

    def close(self) -> None:
        """Remove the folder."""
        self._mapped.clear()
        self._owned.close()

    def _create(self, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = folder / "model.safetensors"
        folder.mkdir(exist_ok=True)
        try:
            save_file({name: tensor.to("cpu", self._dtype).contiguous() for name, tensor in tensors}, path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise QuintainError(f"cannot write the weights to {folder}: {error}") from None
        return _mapped(path, self._dtype)


def _mapped(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of its pages: what is written to them is in the file."""
    size = path.stat().st_size
    raw = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    # The format: the header's length (8 bytes, little-endian), the header as JSON, then the tensors.
    start = 8 + int.from_bytes(bytes(raw[:8].tolist()), "little")
    header = json.loads(bytes(raw[8:start].tolist()))
    header.pop("__metadata__", None)
    return {
        name: raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view(dtype).view(entry["shape"])
        for name, entry in header.items()
    }
