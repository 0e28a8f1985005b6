"""Token trees against brute force over prefixes: a node is a prefix, and sees what is a prefix of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.trainers.batches.tree import Tree, build_tree, split_rows
from quintain.trajectory import Segment

from .made_segments import rows_that_share, segment

Prefix = tuple[int, ...]


def prefixes(tree: Tree) -> list[Prefix]:
    """What each node stands for, read off ids and depths alone: its parent is the last node one level up."""
    found: list[Prefix] = []
    path: list[int] = []
    for token, depth in zip(tree.ids.tolist(), tree.depth.tolist(), strict=True):
        path = [*path[:depth], token]
        found.append(tuple(path))
    return found


def needed_prefixes(rows: list[Segment]) -> set[Prefix]:
    """Every prefix that a policy token, or an ancestor of its predictor, stands on."""
    needed: set[Prefix] = set()
    for row in rows:
        if row.mask.any():
            last = int(np.flatnonzero(row.mask)[-1])
            needed |= {tuple(row.ids[:n].tolist()) for n in range(1, last + 1)}
    return needed


@given(rows_that_share())
def test_every_needed_prefix_is_one_node_and_no_other_node_exists(rows: list[Segment]) -> None:
    found = prefixes(build_tree(rows, range(len(rows))))
    assert sorted(found) == sorted(needed_prefixes(rows))


@given(rows_that_share())
def test_a_token_sees_itself_and_its_ancestors_and_nothing_else(rows: list[Segment]) -> None:
    tree = build_tree(rows, range(len(rows)))
    found = prefixes(tree)
    for i, mine in enumerate(found):
        for j, other in enumerate(found):
            assert (j <= i < tree.exits[j]) == (mine[: len(other)] == other), (i, j)


@given(rows_that_share(), st.integers(0, 50))
def test_the_segments_can_be_read_back_from_the_tree(rows: list[Segment], offset: int) -> None:
    everything = [segment([1, 2], [False, True])] * offset + rows
    tree = build_tree(everything, range(offset, len(everything)))
    found = prefixes(tree)
    expected = [
        (offset + i, int(p), tuple(row.ids[:p].tolist()), int(row.ids[p]))
        for i, row in enumerate(rows)
        for p in np.flatnonzero(row.mask)
    ]
    got = zip(tree.row, tree.position, (found[n] for n in tree.predictor), tree.target, strict=True)
    assert [(int(r), int(p), path, int(t)) for r, p, path, t in got] == expected
    assert tree.rows == tuple(range(offset, len(everything)))


@given(rows_that_share(), st.randoms())
def test_the_order_in_which_rows_are_given_changes_nothing(rows: list[Segment], random: st.DataObject) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one, other = build_tree(rows, range(len(rows))), build_tree(rows, order)
    for name in ("ids", "depth", "exits", "row", "position", "predictor", "target"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.rows == other.rows


def test_equal_completions_cost_nothing_more() -> None:
    row = segment([5, 6, 7, 8, 9], [False, False, True, True, True])
    assert len(build_tree([row] * 8, range(8))) == len(build_tree([row], [0])) == 4


def test_the_last_policy_token_and_what_follows_it_are_not_run() -> None:
    tree = build_tree([segment([5, 6, 7, 8, 9], [False, True, False, True, False])], [0])
    assert tree.ids.tolist() == [5, 6, 7]
    assert tree.target.tolist() == [6, 8]


def test_rows_that_begin_differently_make_a_forest() -> None:
    tree = build_tree([segment([1, 9, 9], [0, 0, 1]), segment([2, 9, 9], [0, 0, 1])], [0, 1])
    assert tree.depth.tolist() == [0, 1, 0, 1]
    assert tree.exits.tolist() == [2, 2, 4, 4]


def test_a_sampled_first_token_is_refused_with_the_segment_that_has_it() -> None:
    good, bad = segment([1, 2], [False, True]), segment([1, 2], [True, True])
    with pytest.raises(ValueError, match="first token of segment 1"):
        build_tree([good, bad], [0, 1])


@given(rows_that_share(), st.integers(1, 30))
def test_split_trees_hold_every_row_once_within_the_limit(rows: list[Segment], limit: int) -> None:
    parts = split_rows(rows, range(len(rows)), limit)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    for part in parts:
        assert len(build_tree(rows, part)) <= limit or len(part) == 1


@given(rows_that_share())
def test_a_group_within_the_limit_is_not_split(rows: list[Segment]) -> None:
    size = len(build_tree(rows, range(len(rows))))
    assert len(split_rows(rows, range(len(rows)), max(1, size))) == min(1, len(rows))


def test_a_group_that_is_too_large_is_split_evenly() -> None:
    rows = [segment([1, 2, 3, i, i, 9], [False] * 3 + [True] * 3) for i in range(10, 18)]  # 3 shared, 2 each: 19
    sizes = [len(build_tree(rows, part)) for part in split_rows(rows, range(8), 18)]
    assert sizes == [11, 11]
