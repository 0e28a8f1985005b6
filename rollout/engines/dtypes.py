"""The number types that models compute in, and `auto`: the faster of them on this machine.

Invariants: bfloat16 is taken only on a GPU or where its products were measured to be faster; and what was chosen once
stands in the experiment from then on, so that the engine, the trainer and a resumed run compute in the same type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

from quintain.config import ExperimentConfig
from quintain.failure import QuintainError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WORTH = 1.1
"""How many times as fast bfloat16 must be: a machine on which they are even keeps the exact one each time."""
_SHAPE = 64, 512, 1024  # rows, into, out: about a decode step's product in a small model; 0.07 GFLOP
_ROUNDS = 12
_ENOUGH_S = 0.5

Seconds = Mapping[str, float]


def torch_dtype(name: str, field: str) -> torch.dtype:
    """The torch type that the option `field` names. QuintainError where it is none, or `auto`, which is not settled."""
    if name not in DTYPES:
        raise QuintainError(f"{field}: expected {' or '.join(DTYPES)}, got {name!r}; `settled` replaces 'auto'")
    return DTYPES[name]


def product_seconds() -> Seconds:
    """The seconds that one matrix product takes on this CPU, by the name of its type.

    The best of several, the types in turns: whatever else the machine does can only make a product slower.
    """
    rows, into, out = _SHAPE
    factors = {name: (torch.ones(rows, into, dtype=t), torch.ones(into, out, dtype=t)) for name, t in DTYPES.items()}
    best = dict.fromkeys(DTYPES, float("inf"))
    began = time.perf_counter()
    with torch.inference_mode():
        for turn in range(_ROUNDS):
            for name, (left, right) in factors.items():
                start = time.perf_counter()
                torch.mm(left, right)
                if turn:  # the first product of a type also pays for its kernel
                    best[name] = min(best[name], time.perf_counter() - start)
            if turn > 2 and time.perf_counter() - began > _ENOUGH_S:
                break
    return best


def settled(
    config: ExperimentConfig, *, gpu: bool | None = None, measure: Callable[[], Seconds] = product_seconds
) -> tuple[ExperimentConfig, str]:
    """`config` with a type in place of each `auto`, and one line that says which and why ("" where none was asked)."""
    model, rollout, once = config.model, config.rollout, cache(measure)
    said: dict[str, list[str]] = {}
    if model.compute_dtype == "auto":
        dtype, why = ("bfloat16", "as its weights") if model.dtype == "bfloat16" else faster(gpu=gpu, measure=once)
        model = model.model_copy(update={"compute_dtype": dtype})
        said.setdefault(f"{dtype}, {why}", []).append("model.compute_dtype")
    if rollout.dtype == "auto":
        beside = rollout.engine == "transformers" and rollout.device == "cpu"  # the GPU, if there is one
        dtype, why = faster(gpu=False if beside else gpu, measure=once)
        rollout = rollout.model_copy(update={"dtype": dtype})
        said.setdefault(f"{dtype}, {why}", []).append("rollout.dtype")
    line = "; ".join(f"{' and '.join(fields)}: {choice}" for choice, fields in said.items())
    return config.model_copy(update={"model": model, "rollout": rollout}), line


def faster(*, gpu: bool | None = None, measure: Callable[[], Seconds] = product_seconds) -> tuple[str, str]:
    """The name of the faster type, and why it is. `gpu` says whether there is one; by default torch is asked."""
    if torch.cuda.is_available() if gpu is None else gpu:
        return "bfloat16", "since there is a GPU"
    seconds = measure()
    times = seconds["float32"] / seconds["bfloat16"]
    if times >= WORTH:
        return "bfloat16", f"{times:.1f} times as fast as float32 on this machine"
    return "float32", f"{1 / times:.1f} times as fast as bfloat16 on this machine"
