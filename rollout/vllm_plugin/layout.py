"""Which tensors a checkpoint of a model must hold, and how another one differs: one line, for whoever published it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

Layout = Mapping[str, tuple[int, ...]]
"""Shapes by name, as in the transformers model's state dict."""

HEAD = "lm_head.weight"


def expected_layout(config: Any) -> Layout | None:
    """The state dict of the transformers model of `config`; None where transformers cannot build it.

    It is built without memory for its weights. Without it nothing is refused here: the canary has the last word.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever the code of a model may raise
        logging.getLogger(__name__).warning("the names of published weights are not checked: %s", error)
        return None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def first_difference(expected: Layout | None, found: Layout, *, tied: bool) -> str | None:
    """What is wrong with `found`, or None. With `tied` embeddings the output layer may be there or not."""
    if expected is None:
        return None
    optional = {HEAD} if tied else set()
    missing = sorted(expected.keys() - found.keys() - optional)
    unknown = sorted(found.keys() - expected.keys() - optional)
    if missing or unknown:
        parts = [_listed("missing", missing), _listed("not the model's", unknown)]
        return "; ".join(part for part in parts if part)
    for name, shape in found.items():
        if name in expected and expected[name] != shape:
            return f"{name} has shape {list(shape)}, the model's is {list(expected[name])}"
    return None


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}" if names else ""
