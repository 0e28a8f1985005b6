"""Checkpoints: everything from which training goes on as if it had never stopped.

Invariants: a checkpoint folder is complete or absent (written beside, synced, renamed); the newest complete one
wins; the oldest are removed only after a new one is in place. The journal's frontier is the step: the rollout
server gives the same groups for a step again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quintain.failure import QuintainError
from quintain.trainers.model.policy import save_policy

_STATE = "trainer.json"
_TENSORS = "state.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` optimiser steps done, weights of `version` in force."""

    step: int
    version: int
    consumed_groups: int
    train_wall_s: float
    heldout_before: float | None = None


def save_checkpoint(
    root: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokenizer: Any,
    *,
    keep: int,
) -> Path:
    """Write `step-000040` under `root` and remove all but the `keep` newest. QuintainError where the disk refuses."""
    final = root / f"step-{progress.step:06d}"
    draft = root / f".draft-{progress.step:06d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_policy(model, tokenizer, draft)
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        whole = {} if len(trained) == len(list(model.parameters())) else trained
        torch.save({"optimizer": optimizer.state_dict(), "trained": whole, "rng": _rng_state()}, draft / _TENSORS)
        (draft / _STATE).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        _sync(draft)
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
    except Exception as error:  # the boundary: safetensors and tokenizers say 'disk full' with types of their own
        shutil.rmtree(draft, ignore_errors=True)
        newest = latest_checkpoint(root)
        kept = f"the newest complete checkpoint is {newest.name}" if newest else "there is no earlier checkpoint"
        detail = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise QuintainError(
            f"cannot write the checkpoint of step {progress.step} under {root}: {detail}; {kept}; free space, then"
            " go on with --resume"
        ) from None
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`."""
    found = sorted(path for path in root.glob("step-*") if (path / _STATE).is_file())
    return found[-1] if found else None


def load_progress(checkpoint: Path) -> Progress:
    """Where the run of `checkpoint` stood."""
    return Progress(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights, optimiser and random states back into place."""
    from safetensors.torch import load_file

    try:
        state = torch.load(checkpoint / _TENSORS, weights_only=False, map_location="cpu")
        trained = state["trained"] or load_file(checkpoint / "model.safetensors")
        progress = load_progress(checkpoint)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise QuintainError(f"cannot read the checkpoint {checkpoint}: {error}") from None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(trained[name])
    optimizer.load_state_dict(state["optimizer"])
    _set_rng_state(state["rng"])
    return progress


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
