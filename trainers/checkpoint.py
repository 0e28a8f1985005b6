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
from quintain.trainers.model.policy import check_saved, restore_policy, save_policy, to_save
from quintain.trainers.ranks import ALONE, Ranks, mine, placed, whole

_STATE = "trainer.json"
_TENSORS = "state.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` optimiser steps done, weights of `version` in force; `state` is the algorithm's.

    best: the best held-out figure so far; worse: evaluations since; kept: its step, whose checkpoint stays.
    """

    step: int
    version: int
    consumed_groups: int
    train_wall_s: float
    heldout_before: float | None = None
    state: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    worse: int = 0
    kept: int | None = None


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
    ranks: Ranks = ALONE,
) -> None:
    """Write `step-000040` under `root` and remove all but the `keep` newest. The first model is in that folder, each
    other one in a folder within it that has its name. Every rank calls this, and rank 0 alone writes.

    With `prove` it is in place only once it has been loaded back and found equal. QuintainError where the disk
    refuses, where something is not finite, or where it does not load back.
    """
    final = root / f"step-{progress.step:06d}"
    draft = root / f".draft-{progress.step:06d}"
    try:
        _check_finite(models, ranks)
        saved = {name: to_save(model) for name, (model, _) in models.items()}
        optimizers = {name: _optimizer_state(*pair) for name, pair in models.items()}
        state = {"optimizers": optimizers, "rng": ranks.gathered(_rng_state())}
        if not ranks.leads:
            return
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, folder in _folders(draft, models).items():
            save_policy(models[name][0], tokenizer, folder, saved[name])
            if prove:
                check_saved(models[name][0], folder, saved[name])
        torch.save(state, draft / _TENSORS)
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
        if progress.kept is not None and old.name == f"step-{progress.kept:06d}":
            continue
        shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`."""
    found = sorted(path for path in root.glob("step-*") if (path / _STATE).is_file())
    return found[-1] if found else None


def load_progress(checkpoint: Path) -> Progress:
    """Where the run of `checkpoint` stood."""
    return Progress(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))


def restore(checkpoint: Path, models: Models, ranks: Ranks = ALONE) -> Progress:
    """Put weights, optimisers and random states back into place, on as many ranks as there are now.

    A rank that the checkpoint knows no random state of (there were fewer) keeps its own. QuintainError where they
    cannot be read.
    """
    try:
        state = torch.load(checkpoint / _TENSORS, weights_only=True, map_location="cpu")
        progress = load_progress(checkpoint)
        for name, folder in _folders(checkpoint, models).items():
            model, optimizer = models[name]
            restore_policy(model, folder)
            _restore_optimizer(model, optimizer, state["optimizers"][name])
        for rng in state["rng"][ranks.rank : ranks.rank + 1]:
            _set_rng_state(rng)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise QuintainError(f"cannot read the checkpoint {checkpoint}: {str(error).splitlines()[0]}") from None
    return progress


def _folders(checkpoint: Path, models: Models) -> dict[str, Path]:
    """Where each model of a checkpoint is."""
    return {name: checkpoint / name if at else checkpoint for at, name in enumerate(models)}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimiser knows of each parameter, by its name: the same however the model is spread over ranks."""
    known = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    return {
        name: {key: whole(value) if isinstance(value, Tensor) else value for key, value in of.items()}
        for name, of in known.items()
        if of
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Give the optimiser what `_optimizer_state` said. KeyError where `model` has no such parameter."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, known in state.items():
        like = parameters[name]
        optimizer.state[like] = {
            key: placed(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value
            for key, value in known.items()
        }


def _check_finite(models: Models, ranks: Ranks) -> None:
    """QuintainError, on every rank, unless every trained weight and all that its optimiser knows of it is finite."""
    found = next(filter(None, ranks.gathered(_not_finite(models))), None)
    if found is not None:
        raise QuintainError(f"{found} is not finite: training has diverged before this step")


def _not_finite(models: Models) -> str | None:
    """The first of this rank's numbers that are trained and not finite."""
    for model, optimizer in models.values():
        for name, parameter in model.named_parameters():
            known = {"weight": parameter.detach(), **optimizer.state.get(parameter, {})}
            for what, value in known.items() if parameter.requires_grad else ():
                if isinstance(value, Tensor) and not bool(mine(value).isfinite().all()):
                    return f"{name} ({what})"
    return None


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
