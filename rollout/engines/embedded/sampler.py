"""Sampling: from logits to token ids and the log-probabilities of the distribution they were drawn from.

Invariants:
- a draw is a function of its row's logits, its settings, its seed and its position; no other row has a say in it;
- the log-probability is of the distribution drawn from: temperature, then top-k, then top-p, renormalised;
- a row whose logits are not finite gets the log-probability NaN: its token means nothing and must not be used.

One uniform number per token is turned into a token by inverting the cumulative distribution (Devroye 1986, II.2).
That takes three cheap passes over the vocabulary where Gumbel noise takes 49,152 random numbers per token; the two
measured 5 ms and 134 ms for 64 rows on one core, `torch.multinomial` 141 ms. The sum is kept in blocks, so that the
search reads the blocks' sums and one block, and no cumulative sum over the whole vocabulary is ever made.

Shapes: B rows, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quintain.rollout.engines.base import Sampling

_BLOCK = 128  # words whose weights are summed together
_CHUNK_ROWS = 8  # rows at a time: their float32 weights stay in the second-level cache
_NUCLEUS_WORDS = 1024  # most nuclei end within this many words; sorting all of them is the slow way out

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn: ids [B] and log-probabilities [B], NaN where the logits were not finite."""

    ids: list[int]
    logprobs: list[float]


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) for token `position` of a turn with `seed`.

    SplitMix64 (Steele, Lea, Flood 2014) over a counter that the seed has been mixed into twice, so that neighbouring
    seeds do not walk the same sequence. A seed counts by its lowest 64 bits.
    """
    return (_mix(_mix(_mix(seed & _MASK) ^ _GOLDEN) + position * _GOLDEN) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draw(logits: Tensor, rows: Sequence[Sampling], positions: Sequence[int]) -> Draw:
    """Draw one token for each row of `logits` [B, V], which is token `positions[i]` of its turn."""
    ids: list[int] = []
    logprobs: list[float] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, len(rows))
        chosen, values = _draw(logits[start:stop], rows[start:stop], positions[start:stop])
        ids += chosen
        logprobs += values
    return Draw(ids, logprobs)


def _draw(logits: Tensor, rows: Sequence[Sampling], positions: Sequence[int]) -> tuple[list[int], list[float]]:
    count, words = logits.shape
    at = torch.arange(count)
    heat = torch.tensor([row.temperature or 1.0 for row in rows], dtype=torch.float64)
    scaled = logits.float()
    if any(row.temperature not in (0.0, 1.0) for row in rows):
        scaled = scaled / heat[:, None].float()
    elif scaled is logits:
        scaled = scaled.clone()
    if words % _BLOCK:
        scaled = torch.nn.functional.pad(scaled, (0, -words % _BLOCK), value=-torch.inf)
    blocks = scaled.view(count, -1, _BLOCK)
    block_top = blocks.amax(-1)
    top = block_top.amax(-1, keepdim=True)
    best = _best(blocks, block_top == top) if any(row.temperature == 0 for row in rows) else None

    # Weights relative to the best word, in the place of the logits.
    _narrow(scaled.sub_(top).exp_(), rows)
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = total.new_tensor([[uniform(row.seed, step)] for row, step in zip(rows, positions, strict=True)]) * total
    block = _first_above(cumulative, target)
    before = torch.where(block > 0, cumulative[at, block - 1], 0.0)
    word = _first_above(blocks[at, block].cumsum(-1, dtype=torch.float64), target - before[:, None])
    ids = (block * _BLOCK + word).clamp_(max=words - 1)
    if best is not None:
        ids = torch.where(torch.tensor([row.temperature == 0 for row in rows]), best, ids)

    logprobs = logits[at, ids].double() / heat - top[:, 0].double() - total[:, 0].log()
    return ids.tolist(), logprobs.clamp_(max=0.0).tolist()


def _best(blocks: Tensor, holds_top: Tensor) -> Tensor:
    """The likeliest word of each row of `blocks` [B, N, block], the first of equals."""
    block = holds_top.int().argmax(-1)
    inside = blocks[torch.arange(len(blocks)), block]
    return block * _BLOCK + (inside == inside.amax(-1, keepdim=True)).int().argmax(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first index of each row of `cumulative` [B, N] above `target` [B, 1]: never one that has no weight.

    Rounding can put the target at or past the end; then it is the last index that still adds something.
    """
    above = cumulative > target
    found = above.any(-1)
    last = (cumulative < cumulative[:, -1:]).sum(-1).clamp_(max=cumulative.shape[-1] - 1)
    return torch.where(found, above.int().argmax(-1), last)


def _narrow(weights: Tensor, rows: Sequence[Sampling]) -> None:
    """Set to zero, in place, the `weights` [B, V] of words outside each row's top-k and top-p."""
    for index, row in enumerate(rows):
        if row.temperature == 0:
            continue
        weight = weights[index]
        if 0 < row.top_k < len(weight):
            least = weight.topk(row.top_k).values[-1]
            weight[weight < least] = 0.0
        if row.top_p < 1.0:
            _keep_nucleus(weight, row.top_p)


def _keep_nucleus(weight: Tensor, top_p: float) -> None:
    """Keep the smallest set of likeliest words that holds `top_p` of `weight` [V]; the likeliest always stays."""
    total = weight.sum(dtype=torch.float64)
    for words in (min(_NUCLEUS_WORDS, len(weight)), len(weight)):
        values, order = weight.topk(words)
        cumulative = values.cumsum(-1, dtype=torch.float64) / total
        if cumulative[-1] >= top_p or words == len(weight):
            break
    kept = int((cumulative < top_p).sum()) + 1
    chosen = order[:kept]
    values = weight[chosen].clone()
    weight.zero_()
    weight[chosen] = values
