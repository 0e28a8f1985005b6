"""Attention over token trees in blocks of queries: exact, without an L × L mask, fast on a CPU.

A block is a run of queries. Because nodes are in depth-first order, all that its queries see lies in the block itself
or among the ancestors of its first query, so a block needs just those keys. Trees side by side in one row cost nothing
extra, and work grows with what tokens see rather than with the square of the row. transformers' own SDPA path with a
boolean mask computes the same; on a CPU its backward pass takes two to three times as long at these sizes.

Invariants: scores, softmax and sums are float32 or wider; nothing quadratic is kept for the backward pass, which
computes the weights again (the recomputation of Dao et al. 2022, section 3.1, with a tree's mask).

Shapes: B rows × L positions, H query heads and K key heads of width D, G = H / K; a block has Q queries and S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintain.trainers.batches.tree import Indices
from quintain.trainers.model.precision import low_precision, products

NAME = "quintain_blocks"
"""How transformers knows this attention (`model.set_attn_implementation`)."""

QUERIES = 64
"""Aimed-at queries of a block: few enough to skip what they do not see, enough to feed a matrix product."""

UNSEEN = -1e30
"""Added to the score of a key that a query does not see: below every score, and finite."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryBlock:
    """Queries start..stop, and the keys they see: the runs `keys`, in order. Places count over B·L.

    The first `open` keys are seen by every query; bias [Q, 1, S − open] is 0 where a query sees one of the others and
    UNSEEN where it does not.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    open: int
    bias: Tensor


def plan_blocks(exits: Indices, spans: Sequence[tuple[int, int]], queries: int = QUERIES) -> tuple[QueryBlock, ...]:
    """Blocks that cover `spans`, the places of each tree; exits [B·L] count over B·L too. Padding is in no block."""
    blocks = []
    for begin, end in spans:
        parts = max(1, round((end - begin) / queries))
        cuts = [begin + (end - begin) * k // parts for k in range(parts + 1)]
        for start, stop in pairwise(cuts):
            above = begin + np.flatnonzero(exits[begin:start] > start)
            keys = np.concatenate([above, np.arange(start, stop)])
            # Exits never grow on the way down a path: what all queries see comes first.
            fully = int((exits[above] >= stop).sum())
            asked = np.arange(start, stop)[:, None]
            seen = (keys[fully:] <= asked) & (asked < exits[keys[fully:]])
            bias = torch.zeros(seen.shape).masked_fill_(torch.from_numpy(~seen), UNSEEN)
            blocks.append(QueryBlock(start, stop, _runs(keys), fully, bias[:, None]))
    return tuple(blocks)


def _runs(places: Indices) -> tuple[tuple[int, int], ...]:
    """Ascending places as runs of neighbours."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    starts, stops = [0, *breaks.tolist()], [*breaks.tolist(), len(places)]
    return tuple((int(places[a]), int(places[b - 1]) + 1) for a, b in zip(starts, stops, strict=True))


def install(model: nn.Module) -> None:
    """Make `model` (a transformers model without wrappers) use this attention; without blocks it runs plain SDPA."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def block_arguments(blocks: tuple[QueryBlock, ...], device: torch.device) -> dict[str, Any]:
    """What to pass to a decoder for blocks to reach its attention layers.

    The mask is empty, and 4-D, which transformers hands on as it is: it builds none of its own.
    """
    return {"token_blocks": blocks, "attention_mask": torch.empty(1, 1, 0, 0, device=device)}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    token_blocks: tuple[QueryBlock, ...] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, H, L, D], key and value [B, K, L, D] to ([B, L, H, D], None)."""
    if token_blocks is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if attention_mask is not None and attention_mask.numel() == 0:
            raise ValueError(
                f"{type(module).__name__} does not hand on the blocks of a token tree: use padded rows for this model"
            )
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    beyond = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if dropout > 0:
        beyond.append("dropout")
    if beyond:
        raise ValueError(
            f"{type(module).__name__} asks for {', '.join(beyond)}, which a token tree cannot have: use padded rows"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _BlockAttention.apply(query, key, value, scale, token_blocks), None  # type: ignore[no-untyped-call]


class _BlockAttention(torch.autograd.Function):
    # Inside, tensors are head-major, [K, B·L, G, D]: the queries of a block and of one key head are then consecutive
    # rows, so that a block is a view and the heads that share keys share a matrix product.
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: tuple[QueryBlock, ...]
    ) -> Tensor:
        low, wide = low_precision(query), torch.promote_types(query.dtype, torch.float32)
        heads = key.shape[1]
        q = _head_major(query, heads, wide) * scale
        k, v = _head_major(key, heads, wide)[:, :, 0], _head_major(value, heads, wide)[:, :, 0]
        out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=wide, device=q.device)
        with products(query.device, low):
            for block in blocks:
                weights = _weights(_asked(q, block), _seen(k, block), block)
                torch.bmm(weights, _seen(v, block), out=_asked(out, block))
        ctx.save_for_backward(q, k, v, out)
        ctx.scale, ctx.blocks, ctx.low = scale, blocks, low
        ctx.like = [(x.shape, x.dtype) for x in (query, key, value)]
        return _batch_major(out, query.shape, low or query.dtype).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        upstream = _head_major(grad.transpose(1, 2), len(k), out.dtype)
        own = (upstream * out).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with products(q.device, ctx.low):
            for block in ctx.blocks:
                asked, keys, values = _asked(q, block), _seen(k, block), _seen(v, block)
                weights = _weights(asked, keys, block)
                given = _asked(upstream, block)
                _add(grad_v, block, torch.bmm(weights.mT, given))
                slopes = torch.bmm(given, values.mT).sub_(_asked(own, block)).mul_(weights)
                _add(grad_k, block, torch.bmm(slopes.mT, asked))
                torch.mul(torch.bmm(slopes, keys), ctx.scale, out=_asked(grad_q, block))
        grads = (grad_q, grad_k[:, :, None], grad_v[:, :, None])
        return *(_batch_major(x, *like) for x, like in zip(grads, ctx.like, strict=True)), None, None


def _head_major(x: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[B, H, L, D] to [K, B·L, G, D], contiguous."""
    rows, heads, length, width = x.shape
    grouped = x.unflatten(1, (kv_heads, heads // kv_heads)).permute(1, 0, 3, 2, 4)
    copy = torch.empty(grouped.shape, dtype=dtype, device=x.device).copy_(grouped)  # casts and moves in one pass
    return copy.view(kv_heads, rows * length, -1, width)


def _batch_major(x: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """[K, B·L, G, D] back to [B, H, L, D], in memory [B, L, H, D] as projections leave and want it."""
    rows, heads, length, _ = shape
    places = x.transpose(0, 1)
    copy = torch.empty(places.shape, dtype=dtype, device=x.device).copy_(places)
    return copy.view(rows, length, heads, x.shape[-1]).transpose(1, 2)


def _asked(x: Tensor, block: QueryBlock) -> Tensor:
    """The block's queries of x [K, B·L, G, D], a view [K, Q·G, D]."""
    return x[:, block.start : block.stop].view(len(x), -1, x.shape[-1])


def _seen(x: Tensor, block: QueryBlock) -> Tensor:
    """The block's keys of x [K, B·L, D], as [K, S, D]."""
    runs = [x[:, start:stop] for start, stop in block.keys]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 1)


def _weights(asked: Tensor, keys: Tensor, block: QueryBlock) -> Tensor:
    """Attention weights [K, Q·G, S], exactly zero where a query does not see a key."""
    scores = torch.bmm(asked, keys.mT)
    scores.unflatten(1, (block.stop - block.start, -1))[..., block.open :].add_(block.bias)
    return scores.softmax(-1)


def _add(into: Tensor, block: QueryBlock, x: Tensor) -> None:
    """Add x [K, S, D] to the block's keys of `into` [K, B·L, D]."""
    at = 0
    for start, stop in block.keys:
        into[:, start:stop].add_(x[:, at : at + stop - start])
        at += stop - start
