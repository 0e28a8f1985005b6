"""One of two ranks: every algorithm of `algorithm_cases`, spread in each way; rank 0 writes what came out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from quintain.trainers.checkpoint import Progress, latest_checkpoint
from quintain.trainers.learner import Learner
from quintain.trainers.ranks import ALONE, Ranks

from .algorithm_cases import CASES, Case, algorithm_for, config_of

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
FEW = "fsdp, fewer pieces than ranks"
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    FEW: {"parallel": "fsdp", "max_tokens_per_microbatch": 100_000},
}
EVERY: dict[str, Case] = {
    **CASES,
    **{f"loss {name}": Case("grpo", {"loss_type": name, "epsilon_high": 2.0}) for name in LOSSES},
    "an adapter": Case("grpo", {"beta": 0.1}, lora={"r": 2}),
}
REMADE = ("grpo", "ppo with everything", "ppo on one trunk", "dpo with everything", "an adapter")
PAIRS = [
    (way, name)
    for way in WAYS
    for name in EVERY
    if (way != FEW or name.startswith(("grpo", "an")))
    and (way == "ddp" or EVERY[name].options.get("optim", "adamw") in ("adamw", "sgd"))
]


def trained(name: str, model: Path, way: dict[str, Any], scratch: Path, ranks: Ranks = ALONE) -> dict[str, Any] | None:
    """What two steps make of the model, with a checkpoint and a new learner between them where `name` is in REMADE;
    None on other ranks."""
    # Unequal numbers of tokens in pieces, and of pieces in ranks; but for bnpo, which depends on the cut.
    most = 100_000 if name == "loss bnpo" else 40
    config = config_of(EVERY[name], model, **({"streams": 1, "max_tokens_per_microbatch": most} | way))
    data = EVERY[name].data

    def made() -> Learner[Any]:
        return Learner(config, algorithm_for(config), checkpoints=scratch, logs=scratch / "logs", ranks=ranks)

    learner = made()
    if not ranks.leads:
        learner.follow(data)
        if name in REMADE:
            made().follow(data)
        return None
    figures = [learner.update(data(0), step=0)]
    if name in REMADE:
        learner.save(Progress(1, 1, 1, 1.0))
        learner.close()
        learner, newest = made(), latest_checkpoint(scratch)
        assert newest is not None
        learner.restore(newest)
    figures.append(learner.update(data(1), step=1))
    weights = dict(learner.weights())
    learner.close()
    return {"figures": figures, "weights": weights}


def main(rank: int, folder: Path, model: Path) -> None:
    """Run all cases in all ways; results in `folder`/results.pt."""
    torch.set_num_threads(1)
    ranks = Ranks.joined(rank, 2, folder / "store")
    results = {}
    for at, (way, name) in enumerate(PAIRS):
        results[way, name] = trained(name, model, WAYS[way], folder / str(at), ranks)
    if ranks.leads:
        torch.save(results, folder / "results.pt")
    ranks.leave()


if __name__ == "__main__":
    os.environ |= {"RANK": sys.argv[1], "LOCAL_RANK": sys.argv[1], "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
