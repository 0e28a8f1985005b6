"""Checkpoints: everything from which training goes on as if it had never stopped.

Invariants: a checkpoint folder is complete or absent (written beside, synced, renamed); the newest complete one
wins; the oldest are removed only after a new one is in place; nothing that is not finite is written; nothing that is
read is run. The journal's frontier is the step: the rollout server gives the same groups for a step again.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintain.failure import QuintainError
from quintain.trainers.model.policy import check_saved, restore_policy, save_policy

_STATE = "trainer.json"
_TENSORS = "state.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` optimiser steps done, weights of `version` in force; `state` is the algorithm's."""

    step: int
    version: int
    consumed_groups: int
    train_wall_s: float
    heldout_before: float | None = None
    state: dict[str, float] = field(default_factory=dict)


Models = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
"""What is trained, by name, the run's own model first."""


def save_checkpoint(
    root: Path,
    progress: Progress,
    models: Models,
    tokenizer: Any,
    *,
    keep: int,
    prove: bool = False,
) -> Path:
    """Write `step-000040` under `root` and remove all but the `keep` newest. The first model is in that folder, each
    other one in a folder within it that has its name.

    With `prove` it is in place only once it has been loaded back and found equal. QuintainError where the disk
    refuses, where something is not finite, or where it does not load back.
    """
    final = root / f"step-{progress.step:06d}"
    draft = root / f".draft-{progress.step:06d}"
    try:
        for model, optimizer in models.values():
            _check_finite(model, optimizer)
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for folder, (model, _) in _folders(draft, models):
            save_policy(model, tokenizer, folder)
            if prove:
                check_saved(model, folder)
        optimizers = {name: optimizer.state_dict() for name, (_, optimizer) in models.items()}
        torch.save({"optimizers": optimizers, "rng": _rng_state()}, draft / _TENSORS)
        (draft / _STATE).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        _sync(draft)
        if final.exists():  # of the same step: what is complete stays until what replaces it is
            final.rename(root / f".draft-old-{progress.step:06d}")
        draft.rename(final)
        _sync_folder(root)
    except Exception as error:  # the boundary: safetensors and tokenizers say 'disk full' with types of their own
        shutil.rmtree(draft, ignore_errors=True)
        newest = latest_checkpoint(root)
        kept = f"the newest complete checkpoint is {newest.name}" if newest else "there is no earlier checkpoint"
        detail = getattr(error, "strerror", None) or str(error).splitlines()[0]
        advice = "" if isinstance(error, QuintainError) else "; free space, then go on with --resume"
        raise QuintainError(
            f"cannot write the checkpoint of step {progress.step} under {root}: {detail}; {kept}{advice}"
        ) from None
    for old in [*root.glob(".draft-*"), *sorted(root.glob("step-*"))[:-keep]]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`."""
    found = sorted(path for path in root.glob("step-*") if (path / _STATE).is_file())
    return found[-1] if found else None


def load_progress(checkpoint: Path) -> Progress:
    """Where the run of `checkpoint` stood."""
    return Progress(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))


def restore(checkpoint: Path, models: Models) -> Progress:
    """Put weights, optimiser and random states back into place. QuintainError where they cannot be read."""
    try:
        state = torch.load(checkpoint / _TENSORS, weights_only=True, map_location="cpu")
        progress = load_progress(checkpoint)
        for folder, (model, _) in _folders(checkpoint, models):
            restore_policy(model, folder)
        for name, (_, optimizer) in models.items():
            optimizer.load_state_dict(state["optimizers"][name])
        _set_rng_state(state["rng"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise QuintainError(f"cannot read the checkpoint {checkpoint}: {str(error).splitlines()[0]}") from None
    return progress


def _folders(checkpoint: Path, models: Models) -> list[tuple[Path, tuple[nn.Module, torch.optim.Optimizer]]]:
    """Where each model of a checkpoint is, and the model with its optimiser."""
    return [(checkpoint / name if at else checkpoint, pair) for at, (name, pair) in enumerate(models.items())]


def _check_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """QuintainError unless every trained weight, and all that the optimiser knows of it, is finite."""
    for name, parameter in model.named_parameters():
        known = {"weight": parameter.detach(), **optimizer.state.get(parameter, {})} if parameter.requires_grad else {}
        for what, value in known.items():
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                raise QuintainError(f"{name} ({what}) is not finite: training has diverged before this step")


def _rng_state() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)  # plain numbers, as the rest: what is read must not need pickles
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
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
    """Everything in `folder`, and its list of names, is on the disk when this returns."""
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
