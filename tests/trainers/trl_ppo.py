"""TRL 1.12's own PPO as an oracle. It left TRL after 1.12, so what it says is kept in `trl_ppo.json`, written by

    python -m pip install --no-deps --target DIR trl==1.12.0
    PYTHONPATH=DIR python tests/trainers/trl_ppo.py > tests/trainers/trl_ppo.json

Nothing of TRL is copied: its loop is one method, of which the lines between two of its comments are run on random
tensors. Rows are of one length, since TRL counts the token after a shorter one as a state more.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH = 5, 6
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"kl_estimator": "k3", "kl_coef": 0.3},
    {"whiten_rewards": True, "kl_coef": 0.2},
    {"gamma": 0.9, "lam": 0.7, "kl_coef": 0.0},
    {"cliprange": 0.05, "cliprange_value": 0.02},
)


def _lines(source: str, start: str, stop: str) -> str:
    lines = source.splitlines()
    first = next(i for i, line in enumerate(lines) if start in line)
    last = next(i for i, line in enumerate(lines) if i > first and stop in line)
    return textwrap.dedent("\n".join(lines[first:last]))


def record(seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Inputs [rows][tokens] and what TRL makes of them."""
    from trl.experimental.ppo import ppo_trainer

    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float, *shape: int) -> Tensor:
        drawn = torch.randn(*(shape or (ROWS, LENGTH)), generator=generator, dtype=torch.float64) * scale
        return drawn.round(decimals=3)

    old = -noise(1.0).abs()
    given = {
        "old": old,
        "ref": old + noise(0.3),
        "value": noise(1.0),
        "score": noise(1.0, ROWS),
        "logp": old + noise(0.3),
        "new_value": noise(1.0),
    }
    logp, new_value = given["logp"].clone().requires_grad_(), given["new_value"].clone().requires_grad_()
    nothing = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    args = SimpleNamespace(
        **{"kl_coef": 0.05, "kl_estimator": "k1", "whiten_rewards": False, "gamma": 1.0, "lam": 0.95}
        | {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 1.0}
        | options
    )
    names: dict[str, Any] = vars(ppo_trainer) | {
        "args": args,
        "ref_logprobs": given["ref"],
        "logprobs": given["old"],
        "values": given["value"],
        "scores": given["score"],
        "responses": nothing,
        "padding_mask": nothing,
        "padding_mask_p1": nothing,
        "sequence_lengths": torch.full((ROWS,), LENGTH - 1),
        "sequence_lengths_p1": torch.full((ROWS,), LENGTH),
        "micro_batch_inds": torch.arange(ROWS),
        "new_logprobs": logp,
        "vpred": new_value,
    }
    source = inspect.getsource(ppo_trainer.PPOTrainer.train)
    exec(_lines(source, "# 4. compute rewards", "empty_cache()"), names)
    names |= {"mb_advantage": names["advantages"], "mb_return": names["returns"]}
    names |= {"mb_values": given["value"], "mb_logprobs": given["old"]}
    exec(_lines(source, "vpredclipped = torch.clamp(", "accelerator.backward(loss)"), names)
    names["loss"].backward()
    found = {name: names[name] for name in ("kl", "advantages", "returns", "pg_loss", "vf_loss", "vf_clipfrac")}
    found |= {"policy_gradient": logp.grad, "value_gradient": new_value.grad}
    return {
        "options": options,
        "given": {name: value.tolist() for name, value in given.items()},
        "found": {name: value.round(decimals=12).tolist() for name, value in found.items()},
    }


if __name__ == "__main__":
    import trl

    assert trl.__version__ == "1.12.0", trl.__version__
    print(json.dumps([record(seed, options) for seed, options in enumerate(OPTIONS)]))
