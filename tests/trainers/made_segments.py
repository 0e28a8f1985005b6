"""Segments and tiny models for the tests of trees, micro-batches and the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from quintain.trajectory import Segment

WORDS = 61


def segment(ids: Sequence[int], mask: Sequence[bool]) -> Segment:
    """A segment of these tokens; nothing is said about sampling."""
    flags = np.array(mask, dtype=np.bool_)
    versions = np.where(flags, 0, -1).astype(np.int32)
    return Segment(
        np.array(ids, np.int32), flags, np.zeros(len(ids), np.float32), versions, np.zeros(len(ids), np.float32)
    )


@st.composite
def rows_that_share(draw: st.DrawFn, most: int = 6) -> list[Segment]:
    """Rows over three words, so that prefixes coincide at every depth; masks of any shape, empty ones included."""
    made = []
    for _ in range(draw(st.integers(0, most))):
        ids = draw(st.lists(st.integers(1, 3), min_size=1, max_size=9))
        mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        made.append(segment(ids, [False, *mask[1:]]))
    return made


@st.composite
def step_batches(draw: st.DrawFn) -> tuple[list[Segment], list[str]]:
    """The segments of a step with their groups, in any order."""
    groups = [draw(rows_that_share(4)) for _ in range(draw(st.integers(0, 4)))]
    labelled = [(row, f"group {g}") for g, rows in enumerate(groups) for row in rows]
    order = draw(st.permutations(range(len(labelled))))
    return [labelled[i][0] for i in order], [labelled[i][1] for i in order]


def ragged_step(seed: int) -> tuple[list[Segment], list[int]]:
    """Three groups of four rows: shared prompts, completions of two words' variety, half with a second turn."""
    rng = np.random.default_rng(seed)
    segments, groups = [], []
    for group in range(3):
        prompt = rng.integers(1, WORDS, rng.integers(3, 9)).tolist()
        for _ in range(4):
            first = rng.integers(1, 3, rng.integers(1, 10)).tolist()
            reply = rng.integers(1, WORDS, 2).tolist() if rng.random() < 0.5 else []
            second = rng.integers(1, WORDS, 3).tolist() if reply else []
            mask = [False] * len(prompt) + [True] * len(first) + [False] * len(reply) + [True] * len(second)
            segments.append(segment([*prompt, *first, *reply, *second], mask))
            groups.append(group)
    return segments, groups


SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform: mistakes must show
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny(kind: str, **changes: Any) -> Any:
    """A tiny random model: `kind` is a transformers model type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = GPT2 if kind == "gpt2" else SIZES
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | changes))).train()


def plain_logprobs(model: Any, segments: Sequence[Segment], temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """(logp, entropy) of each segment's policy tokens from the model's own logits, one segment at a time."""
    for row in segments:
        ids = torch.from_numpy(row.ids).long()
        scores = torch.log_softmax(model(ids[None], use_cache=False).logits[0] / temperature, -1)
        at = torch.from_numpy(row.mask).nonzero()[:, 0]
        yield scores[at - 1, ids[at]], -(scores.exp() * scores).sum(-1)[at - 1]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a parameter's gradient; parameters without a gradient but for rounding count least.

    A key's bias, say, moves all scores alike, so its gradient is zero; what is left of it is rounding.
    """
    assert got.keys() == expected.keys()
    floor = 1e-3 * max(float(x.norm()) for x in expected.values())
    return max(float((got[n] - x).norm()) / max(float(x.norm()), floor) for n, x in expected.items())
