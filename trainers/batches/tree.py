"""Token trees: rows that begin alike are computed once.

The rows of a group share their prompt, and often more (identical answers, turns before a fork). A tree holds every
distinct prefix as one node; a token sees itself and its ancestors, which is exactly what it sees in its own row.

Invariants:
- nodes are in depth-first order, so that a subtree is a run: node j is an ancestor of i, or i itself, exactly if
  j ≤ i < exits[j]; nothing else is needed to build an attention mask;
- only nodes that predict a policy token, or are ancestors of one that does, exist: a row's last policy token and
  what follows it are never run;
- every policy token of every row appears once, in (row, position) order.

Shapes: N nodes, T policy tokens, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintain.trajectory import Segment

Indices = np.ndarray[Any, np.dtype[np.int64]]
IntArray = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The trie of `rows` (indices of segments, ascending).

    Nodes: ids [N] token; depth [N] ancestors, which is the position in every row through the node; exits [N] end of
    the node's subtree. Policy tokens: row [T] index of the segment; position [T] place in it; predictor [T] the node
    whose hidden state predicts it; target [T] its id.
    """

    rows: tuple[int, ...]
    ids: Indices
    depth: Indices
    exits: Indices
    row: Indices
    position: Indices
    predictor: Indices
    target: Indices

    def __len__(self) -> int:
        return len(self.ids)


def needed(segment: Segment, index: int) -> Indices:
    """The ids that must be run for `segment`: all before its last policy token. ValueError where the first is one."""
    positions = np.flatnonzero(segment.mask)
    if len(positions) and positions[0] == 0:
        raise ValueError(
            f"the first token of segment {index} is marked as sampled, but nothing precedes it that could predict it: "
            "a prompt needs at least one token"
        )
    return segment.ids[: positions[-1]].astype(np.int64) if len(positions) else np.empty(0, np.int64)


def build_tree(segments: Sequence[Segment], rows: Sequence[int]) -> Tree:
    """The tree of segments[i] for i in `rows`. Sorting brings equal prefixes together: O(tokens) after that."""
    paths = [needed(segments[i], i) for i in rows]
    order = lexicographic(paths)
    fresh = _fresh_tokens(paths, order)
    size = sum(fresh)
    ids, depth = np.empty(size, np.int64), np.empty(size, np.int64)
    exits = np.full(size, size, np.int64)
    nodes: list[Indices] = [np.empty(0, np.int64)] * len(paths)
    path, at = np.empty(0, np.int64), 0
    for k, new in zip(order, fresh, strict=True):
        length = len(paths[k])
        if new:
            shared = length - new
            exits[path[shared:]] = at  # the walk leaves what it does not share with the row before
            path = np.concatenate([path[:shared], np.arange(at, at + new)])
            ids[at : at + new] = paths[k][shared:]
            depth[at : at + new] = np.arange(shared, length)
            at += new
        nodes[k] = path[:length]
    ranked = sorted(range(len(rows)), key=lambda k: rows[k])
    positions = [np.flatnonzero(segments[rows[k]].mask) for k in ranked]
    return Tree(
        rows=tuple(rows[k] for k in ranked),
        ids=ids,
        depth=depth,
        exits=exits,
        row=np.repeat([rows[k] for k in ranked], [len(p) for p in positions]).astype(np.int64),
        position=_joined(positions),
        predictor=_joined([nodes[k][p - 1] for k, p in zip(ranked, positions, strict=True)]),
        target=_joined([segments[rows[k]].ids[p] for k, p in zip(ranked, positions, strict=True)]),
    )


def split_rows(segments: Sequence[Segment], rows: Sequence[int], max_nodes: int) -> list[list[int]]:
    """`rows` cut into as few trees of at most `max_nodes` as neighbours in sorted order allow, evenly filled.

    A row that is longer than `max_nodes` by itself is a tree of its own.
    """
    paths = [needed(segments[i], i) for i in rows]
    order = lexicographic(paths)
    fresh = _fresh_tokens(paths, order)
    lengths = [len(paths[k]) for k in order]
    low, high = max(1, -(-sum(fresh) // max(1, len(rows)))), max_nodes
    fewest = len(_filled(lengths, fresh, high))
    while low < high:  # the smallest limit that needs no more trees fills them most evenly
        middle = (low + high) // 2
        if len(_filled(lengths, fresh, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return [sorted(rows[order[k]] for k in part) for part in _filled(lengths, fresh, high)]


def lexicographic(paths: Sequence[Indices]) -> list[int]:
    """The order of `paths` by their ids, a prefix before what extends it; equal ones in the order given."""
    keys = [path.astype(">u4").tobytes() for path in paths]
    return sorted(range(len(paths)), key=lambda k: keys[k])


def _fresh_tokens(paths: Sequence[Indices], order: Sequence[int]) -> list[int]:
    """How many tokens each path, in `order`, does not share with the one before it."""
    fresh, before = [], np.empty(0, np.int64)
    for k in order:
        fresh.append(len(paths[k]) - shared_prefix(paths[k], before))
        before = paths[k]
    return fresh


def shared_prefix(one: IntArray, other: IntArray) -> int:
    """How many ids both begin with."""
    both = min(len(one), len(other))
    differs = one[:both] != other[:both]
    return int(differs.argmax()) if differs.any() else both


def _filled(lengths: Sequence[int], fresh: Sequence[int], limit: int) -> list[list[int]]:
    """Places 0..n cut greedily into runs of at most `limit` nodes."""
    parts: list[list[int]] = []
    used = 0
    for k, (length, new) in enumerate(zip(lengths, fresh, strict=True)):
        if parts and used + new <= limit:
            parts[-1].append(k)
            used += new
        else:
            parts.append([k])
            used = length
    return parts


def _joined(arrays: Sequence[np.ndarray[Any, Any]]) -> Indices:
    return np.concatenate([np.empty(0, np.int64), *arrays]).astype(np.int64)
