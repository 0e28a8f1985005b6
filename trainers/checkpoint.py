"""Checkpoints: everything from which training goes on as if it had never stopped.

Invariants: a checkpoint folder is complete or absent (written beside, synced, renamed); the newest complete one
wins; the oldest are removed only after a new one is in place; nothing that is not finite is written; nothing that is
read is run. The journal's frontier is the step: the rollout server gives the same groups for a step again.

Weights are a folder that transformers loads, which rank 0 writes. What the optimisers know is twice as much, and a
distributed checkpoint of torch's: every rank writes what it has and reads what it is to have, however many they are.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quintain.failure import QuintainError
from quintain.trainers.model.policy import check_saved, restore_policy, save_policy, to_save
from quintain.trainers.ranks import ALONE, Ranks, is_loss, mine

_STATE = "trainer.json"
_RANDOM = "state.pt"
_OPTIMIZERS = "optimizers"


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
    other one in a folder within it that has its name. Every rank calls this, and writes its part of the optimisers.

    With `prove` it is in place only once it has been loaded back and found equal. QuintainError where the disk
    refuses, where something is not finite, or where it does not load back; what `is_loss` knows where a rank is gone.
    """
    final = root / f"step-{progress.step:06d}"
    draft = root / f".draft-{progress.step:06d}"
    try:
        _begin(draft, models, ranks)
        tensors, rest = _known(models)
        _save_tensors(tensors, draft / _OPTIMIZERS, ranks)
        saved = {name: to_save(model) for name, (model, _) in models.items()}
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        state = {"rng": ranks.gathered(_rng_state()), "rest": rest, "tensors": shapes}
        if not ranks.leads:
            return
        for name, folder in _folders(draft, models).items():
            save_policy(models[name][0], tokenizer, folder, saved[name])
            if prove:
                check_saved(models[name][0], folder, saved[name])
        torch.save(state, draft / _RANDOM)
        (draft / _STATE).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        _sync(draft)
        if final.exists():  # of the same step: what is complete stays until what replaces it is
            final.rename(root / f".draft-old-{progress.step:06d}")
        draft.rename(final)
        _sync_folder(root)
    except Exception as error:  # the boundary: safetensors and tokenizers say 'disk full' with types of their own
        shutil.rmtree(draft, ignore_errors=True)
        if is_loss(error):
            raise
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
        state = torch.load(checkpoint / _RANDOM, weights_only=True, map_location="cpu")
        progress = load_progress(checkpoint)
        for name, folder in _folders(checkpoint, models).items():
            restore_policy(models[name][0], folder)
        tensors = _read_tensors(checkpoint / _OPTIMIZERS, state["tensors"], models, ranks)
        for _, optimizer in models.values():
            optimizer.state.clear()
        for name, value in (tensors | state["rest"]).items():
            optimizer, parameter, what = _place(models, name)
            optimizer.state.setdefault(parameter, {})[what] = value
        for rng in state["rng"][ranks.rank : ranks.rank + 1]:
            _set_rng_state(rng)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        if is_loss(error):
            raise
        raise QuintainError(f"cannot read the checkpoint {checkpoint}: {str(error).splitlines()[0]}") from None
    return progress


def _folders(checkpoint: Path, models: Models) -> dict[str, Path]:
    """Where each model of a checkpoint is."""
    return {name: checkpoint / name if at else checkpoint for at, name in enumerate(models)}


def _begin(draft: Path, models: Models, ranks: Ranks) -> None:
    """Make the empty folder `draft`. QuintainError or OSError, on every rank, where that cannot be, or where a trained
    weight or something that its optimiser knows of it is not finite."""
    found: Exception | None = None
    if (broken := _not_finite(models)) is not None:
        found = QuintainError(f"{broken} is not finite: training has diverged before this step")
    elif ranks.leads:
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        except OSError as error:
            found = error
    if (first := next(filter(None, ranks.gathered(found)), None)) is not None:
        raise first


def _known(models: Models) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the optimisers know, tensors and the rest, by "model/parameter/what": the same names on any number of
    ranks."""
    known = {
        f"{model}/{name}/{what}": value
        for model, (module, optimizer) in models.items()
        for name, parameter in module.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
    }
    tensors = {name: value for name, value in known.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in known.items() if name not in tensors}


def _save_tensors(known: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Write what every rank has of `known`. OSError, on all of them, where one's disk refuses."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if not known:
        return
    # As safetensors: the pickles of torch's own format are run when they are read.
    if not ranks.several:  # without the copies in memory that torch's writer makes
        folder.mkdir()
        save_file({name: value.contiguous() for name, value in known.items()}, folder / "whole.safetensors")
        return
    with _plain_errors():
        save(known, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _read_tensors(folder: Path, shapes: Mapping[str, list[int]], models: Models, ranks: Ranks) -> dict[str, Tensor]:
    """What `_save_tensors` wrote, of these shapes: those of a parameter's own are spread over the ranks as it is.

    ValueError where a part is missing, AttributeError where a model has no such parameter.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if not shapes:
        return {}
    reader = HuggingFaceStorageReader(str(folder))
    written, tensors = reader.read_metadata().state_dict_metadata, {}
    for name, shape in shapes.items():
        saved: Any = written.get(name)
        if saved is None or sum(chunk.sizes.numel() for chunk in saved.chunks) != math.prod(shape):
            raise ValueError(f"{folder.name}/ has not all of {name}")
        _, like, _ = _place(models, name)
        dtype = saved.properties.dtype
        if like.shape == torch.Size(shape):
            tensors[name] = torch.zeros_like(like, dtype=dtype)
        else:
            device = like.device if shape else "cpu"  # where an optimiser counts its steps
            tensors[name] = torch.zeros(shape, dtype=dtype, device=device)
    with _plain_errors():
        load(tensors, storage_reader=reader, no_dist=not ranks.several)
    return tensors


def _place(models: Models, name: str) -> tuple[torch.optim.Optimizer, nn.Parameter, str]:
    """The optimiser, the parameter, and what is known of it, that a name of `_known` is about."""
    model, parameter, what = name.split("/")
    module, optimizer = models[model]
    return optimizer, module.get_parameter(parameter), what


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What went wrong on a rank, instead of a list of all ranks' errors; and no warning that there is but one."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


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
