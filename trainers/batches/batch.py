"""From segments to tensors: an optimiser step cut into micro-batches of token trees, packed rows or padded rows.

All three layouts are one thing seen three ways: pieces (trees) placed in rows. `tree`: a piece is a group's token
tree. `packed`: a piece is one segment, many to a row. `padded`: a piece is one segment, one to a row, so that plain
causal attention needs no mask.

Invariants:
- the policy tokens of every segment are in exactly one micro-batch, once, in (segment, position) order;
- the cut depends on the segments and the arguments alone, so every rank of a run makes the same one;
- the segments of a unit are in one micro-batch, those that have policy tokens;
- a micro-batch holds at most `max_tokens` tokens, unless a single unit alone has more.

Segments without policy tokens need nothing computed and are in no micro-batch.

Shapes: B rows × L positions, T policy tokens, U hidden states that predict some.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from quintain.trainers.batches.tree import Indices, Tree, build_tree, split_rows
from quintain.trajectory import Segment

Layout = Literal["tree", "packed", "padded"]

PARITY_TOKENS = 1024
"""Row length at which attention with a mask costs about as much as the rest of a layer. It only steers packing."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What the forward pass needs. Positions count over the flattened B·L.

    input_ids, position_ids [B, L] int64. exits [B, L] int64: in its row, place i sees place j exactly if
    j ≤ i < exits[j]; None: plain causal rows. spans: where each tree lies, padding excluded.
    predictors [U] int64, ascending: positions whose hidden state predicts policy tokens. predictor [T] int64: which of
    them predicts each token; targets [T] int64: its id; row [T] int64: its segment, as an index into `segments`,
    which holds indices of the step's segments, ascending.
    """

    input_ids: Tensor
    position_ids: Tensor
    exits: Tensor | None
    predictors: Tensor
    predictor: Tensor
    targets: Tensor
    row: Tensor
    segments: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Tokens that are run, padding excluded."""
        return sum(stop - start for start, stop in self.spans)

    def attention_mask(self) -> Tensor | None:
        """[B, 1, L, L] bool, true where a position sees another; None: plain causal rows."""
        if self.exits is None:
            return None
        place = torch.arange(self.exits.shape[1], device=self.exits.device)
        seen = (place[None, :] <= place[:, None]) & (place[:, None] < self.exits[:, None, :])
        return seen[:, None]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`; itself where it is there already."""
        if self.input_ids.device == device:
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in tensors.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def micro_batches(
    segments: Sequence[Segment],
    groups: Sequence[Hashable],
    *,
    layout: Layout,
    max_tokens: int,
    units: Sequence[Hashable] | None = None,
    parity_tokens: int | None = None,
    at_least: int = 1,
) -> list[MicroBatch]:
    """Cut `segments` into micro-batches of similar cost.

    groups [N]: segments with equal values may share prefixes. units [N]: those with equal values stay together; None:
    each is one. max_tokens: tokens of a micro-batch, after sharing, and
    with padding for `padded`. parity_tokens: see PARITY_TOKENS; None where attention costs no more in longer rows
    (block attention), which puts all trees in one row without padding. `PolicyForward.parity_tokens` knows which.
    at_least: so many micro-batches, where there are as many trees; rows that are padded are cut by `max_tokens` alone.
    """
    if len(groups) != len(segments):
        raise ValueError(f"expected a group for each of {len(segments)} segments, got {len(groups)}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    units = range(len(segments)) if units is None else units
    pieces = _pieces(segments, groups, units, layout, max_tokens)
    bundles = [[build_tree(segments, rows) for rows in bundle] for bundle in _bundled(pieces, units)]
    if layout == "padded":
        batches = [_assembled([[tree] for tree in part], causal=True) for part in _padded_parts(bundles, max_tokens)]
    else:
        parts = _balanced(bundles, max_tokens, parity_tokens, at_least)
        batches = [_assembled(_rows(part, parity_tokens), causal=False) for part in parts]
    return sorted(batches, key=lambda batch: batch.segments[0])


def _pieces(
    segments: Sequence[Segment], groups: Sequence[Hashable], units: Sequence[Hashable], layout: Layout, max_tokens: int
) -> list[list[int]]:
    """Which segments make up each tree."""
    trained = [i for i, segment in enumerate(segments) if segment.mask.any()]
    if layout != "tree":
        return [[i] for i in trained]
    found: list[list[int]] = []
    for rows in _alike(trained, groups):
        parts, whole = split_rows(segments, rows, max_tokens), _alike(rows, units)
        found += parts if len(parts) == 1 or len(whole) == len(rows) else whole
    return found


def _alike(rows: Sequence[int], labels: Sequence[Hashable]) -> list[list[int]]:
    """`rows` by their label."""
    members: dict[Hashable, list[int]] = {}
    for i in rows:
        members.setdefault(labels[i], []).append(i)
    return list(members.values())


def _bundled(pieces: Sequence[list[int]], units: Sequence[Hashable]) -> list[list[list[int]]]:
    """`pieces`, those that have a unit in common together."""
    bundles: list[list[list[int]]] = []
    bundle_of: dict[Hashable, int] = {}
    for piece in pieces:
        joined = sorted({bundle_of[units[i]] for i in piece if units[i] in bundle_of})
        bundles.append([part for at in joined for part in bundles[at]] + [piece])
        for at in joined:
            bundles[at] = []
        bundle_of |= {units[i]: len(bundles) - 1 for part in bundles[-1] for i in part}
    return [bundle for bundle in bundles if bundle]


def _size(bundle: Sequence[Tree]) -> int:
    return sum(map(len, bundle))


def _cost(bundle: Sequence[Tree], parity_tokens: int | None) -> float:
    """Relative cost of trees: their tokens, and the keys that they see."""
    return sum(len(tree) + float((tree.depth + 1).sum()) / (parity_tokens or PARITY_TOKENS) for tree in bundle)


def _balanced(
    bundles: Sequence[list[Tree]], max_tokens: int, parity_tokens: int | None, at_least: int
) -> list[list[Tree]]:
    """As few parts within `max_tokens`, from `at_least` on, as longest-processing-time-first finds; of similar cost."""
    large = [bundle for bundle in bundles if _size(bundle) >= max_tokens]
    rest = [bundle for bundle in bundles if _size(bundle) < max_tokens]
    rest = sorted(rest, key=lambda bundle: -_cost(bundle, parity_tokens))
    count = max(-(-sum(map(_size, rest)) // max_tokens), min(at_least - len(large), len(rest)))
    while (parts := _fitted(rest, count, max_tokens, parity_tokens)) is None:
        count += 1
    return large + parts


def _fitted(
    bundles: Sequence[list[Tree]], count: int, max_tokens: int, parity_tokens: int | None
) -> list[list[Tree]] | None:
    """`bundles`, dearest first, each to the cheapest of `count` parts with room for it; None where one finds none."""
    parts: list[list[Tree]] = [[] for _ in range(count)]
    cost, size = [0.0] * count, [0] * count
    for bundle in bundles:
        free = [p for p in range(count) if size[p] + _size(bundle) <= max_tokens]
        if not free:
            return None
        p = min(free, key=lambda p: cost[p])
        parts[p] += bundle
        cost[p] += _cost(bundle, parity_tokens)
        size[p] += _size(bundle)
    return parts


def _padded_parts(bundles: Sequence[list[Tree]], max_tokens: int) -> list[list[Tree]]:
    """As few parts of at most `max_tokens`, padding included, as rows of similar length make; evenly filled."""
    longest_first = sorted(bundles, key=lambda bundle: -max(map(len, bundle)))

    def cut(limit: int) -> list[list[Tree]]:
        parts: list[list[Tree]] = []
        width = 0
        for bundle in longest_first:
            if parts and width * (len(parts[-1]) + len(bundle)) <= limit:
                parts[-1] += bundle
            else:
                parts.append(list(bundle))
                width = max(map(len, bundle))
        return parts

    low, high, fewest = 1, max_tokens, len(cut(max_tokens))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= fewest else (middle + 1, high)
    return cut(high)


def _rows(trees: Sequence[Tree], parity_tokens: int | None) -> list[list[Tree]]:
    """Trees placed in the rows that cost least: B · L · (1 + L / parity), padding included."""
    if parity_tokens is None:
        return [list(trees)]
    best: list[list[Tree]] = []
    cheapest = float("inf")
    for count in range(1, len(trees) + 1):
        rows: list[list[Tree]] = [[] for _ in range(count)]
        filled = [0] * count
        for tree in sorted(trees, key=lambda tree: -len(tree)):
            at = filled.index(min(filled))
            rows[at].append(tree)
            filled[at] += len(tree)
        cost = count * max(filled) * (1 + max(filled) / parity_tokens)
        if cost < cheapest:
            best, cheapest = rows, cost
    return best


def _assembled(rows: Sequence[Sequence[Tree]], *, causal: bool) -> MicroBatch:
    """Tensors of trees placed in rows."""
    shape = len(rows), max(sum(map(len, row)) for row in rows)
    ids, depth = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    # Padding comes after everything else and sees itself alone (in causal rows, what precedes it).
    exits = np.tile(np.arange(1, shape[1] + 1), (shape[0], 1))
    if causal:
        depth[:] = np.arange(shape[1])
    placed: list[tuple[int, Tree]] = []
    for b, row in enumerate(rows):
        at = 0
        for tree in row:
            here = slice(at, at + len(tree))
            ids[b, here], depth[b, here], exits[b, here] = tree.ids, tree.depth, tree.exits + at
            placed.append((b * shape[1] + at, tree))
            at += len(tree)
    trees = [tree for _, tree in placed]
    segment, position = _all([tree.row for tree in trees]), _all([tree.position for tree in trees])
    order = np.lexsort((position, segment))
    indices, row_of = np.unique(segment[order], return_inverse=True)
    predictors, predictor = np.unique(
        _all([start + tree.predictor for start, tree in placed])[order], return_inverse=True
    )
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(depth),
        exits=None if causal else torch.from_numpy(exits),
        predictors=torch.from_numpy(predictors),
        predictor=torch.from_numpy(predictor),
        targets=torch.from_numpy(_all([tree.target for tree in trees])[order]),
        row=torch.from_numpy(row_of),
        segments=tuple(indices.tolist()),
        spans=tuple((start, start + len(tree)) for start, tree in placed),
    )


def _all(arrays: Sequence[Indices]) -> Indices:
    return np.concatenate(arrays)
