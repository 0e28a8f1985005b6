"""The reference's log-probabilities of a whole data set, computed once before training and kept on the disk.

What is kept was made of the very same tokens, weights and number type. Importing this module imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quintain.config import ExperimentConfig
from quintain.trainers.batches.batch import micro_batches
from quintain.trainers.datasets import cache_folder
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.model.forward import PolicyForward, supports_tree
from quintain.trainers.model.policy import load_policy
from quintain.trainers.rows import Floats, Row, per_row
from quintain.trainers.update import by_row


def with_reference(
    examples: Sequence[Example], config: ExperimentConfig, *, check: Callable[[], None] = lambda: None
) -> list[Example]:
    """`examples` with what the model of `config`, before training and without an adapter of its own, says of them."""
    if not examples:
        return []
    rows = example_rows(examples).rows
    file = cache_folder("reference") / f"{_key(rows, config)}.npy"
    try:
        flat = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        flat = np.concatenate(_scored(rows, config, check))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, flat, allow_pickle=False)
    parts = iter(per_row(flat, rows))
    return [replace(example, ref=tuple(next(parts) for _ in example.ids)) for example in examples]


def _scored(rows: Sequence[Row], config: ExperimentConfig, check: Callable[[], None]) -> list[Floats]:
    lora = config.model.lora
    kept = lora if lora is not None and lora.path is not None else None
    model, _ = load_policy(config.model.model_copy(update={"lora": kept}), seed=config.seed)
    model.eval()
    forward = PolicyForward(model, temperature=config.rollout.temperature, entropy=False)
    pieces = micro_batches(
        [row.segment for row in rows],
        [row.prefix for row in rows],
        layout="tree" if supports_tree(model) is None else "padded",
        max_tokens=config.trainer.max_tokens_per_microbatch,
        parity_tokens=forward.parity_tokens,
    )
    found = {}
    mixed = config.model.dtype == "float32" and config.model.compute_dtype == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for index, piece in enumerate(pieces):
            check()
            found[index] = forward(piece).logp
    columns = by_row(pieces, found)
    return [columns[at] for at in range(len(rows))]


def _key(rows: Sequence[Row], config: ExperimentConfig) -> str:
    """What the log-probabilities follow from, hashed; a model's weights by the size and time of their files."""
    model, temperature = config.model, config.rollout.temperature
    adapter = model.lora.path if model.lora is not None else None
    digest = hashlib.sha256(f"{model.path} {model.dtype} {model.compute_dtype} {temperature}".encode())
    folders = [Path(folder) for folder in (model.path, adapter) if folder is not None]
    for file in [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*"))]:
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    for row in rows:
        digest.update(row.segment.ids.tobytes() + row.segment.mask.tobytes())
    return digest.hexdigest()[:32]
