"""Micro-batches: nothing lost, nothing twice, within the budget, whatever the layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quintain.trainers.batches.batch import Layout, MicroBatch, micro_batches
from quintain.trainers.batches.tree import build_tree
from quintain.trajectory import Segment

from .made_segments import ragged_step, segment, step_batches

LAYOUTS: tuple[Layout, ...] = ("tree", "packed", "padded")
layouts = st.sampled_from(LAYOUTS)
parities = st.sampled_from([None, 1, 8, 1024])
Step = tuple[list[Segment], list[str]]


def unpacked(batch: MicroBatch) -> list[tuple[int, tuple[int, ...], int]]:
    """(segment, the ids that the predicting position sees, the predicted id) of each token, read off the tensors."""
    rows, length = batch.input_ids.shape
    mask = batch.attention_mask()
    seen = torch.ones(rows, 1, length, length).tril().bool() if mask is None else mask
    assert seen.shape == (rows, 1, length, length)
    out = []
    for t in range(len(batch.targets)):
        at = int(batch.predictors[batch.predictor[t]])
        visible = seen[at // length, 0, at % length]
        assert batch.position_ids[at // length][visible].tolist() == list(range(int(visible.sum())))
        context = tuple(batch.input_ids[at // length][visible].tolist())
        out.append((batch.segments[int(batch.row[t])], context, int(batch.targets[t])))
    return out


def expected(segments: list[Segment]) -> list[tuple[int, tuple[int, ...], int]]:
    return [
        (i, tuple(row.ids[:p].tolist()), int(row.ids[p]))
        for i, row in enumerate(segments)
        for p in np.flatnonzero(row.mask)
    ]


@given(step_batches(), layouts, st.integers(1, 40), parities)
def test_every_policy_token_is_in_one_micro_batch_behind_its_own_prefix(
    step: Step, layout: Layout, max_tokens: int, parity: int | None
) -> None:
    segments, groups = step
    batches = micro_batches(segments, groups, layout=layout, max_tokens=max_tokens, parity_tokens=parity)
    found = [token for batch in batches for token in unpacked(batch)]
    assert sorted(found) == sorted(expected(segments))
    for batch in batches:
        mine = [segments[i] for i in batch.segments]
        assert list(batch.segments) == sorted(set(batch.segments))
        assert [(batch.segments[i], *rest) for i, *rest in expected(mine)] == unpacked(batch)  # in order


@given(step_batches(), layouts, st.integers(1, 40), parities)
def test_a_micro_batch_keeps_to_its_budget_unless_one_segment_alone_is_larger(
    step: Step, layout: Layout, max_tokens: int, parity: int | None
) -> None:
    segments, groups = step
    for batch in micro_batches(segments, groups, layout=layout, max_tokens=max_tokens, parity_tokens=parity):
        size = batch.input_ids.numel() if layout == "padded" else batch.tokens
        assert size <= max_tokens or len(batch.segments) == 1


@given(step_batches(), layouts, st.integers(1, 40), parities)
def test_the_cut_does_not_depend_on_what_groups_are_called(
    step: Step, layout: Layout, max_tokens: int, parity: int | None
) -> None:
    segments, groups = step
    options: dict[str, Any] = {"layout": layout, "max_tokens": max_tokens, "parity_tokens": parity}
    one = micro_batches(segments, groups, **options)
    other = micro_batches(segments, [("another name", len(g), g) for g in groups], **options)
    assert [b.segments for b in one] == [b.segments for b in other]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, other, strict=True))


@given(step_batches(), st.integers(12, 60))
def test_micro_batches_of_trees_differ_by_no_more_than_the_dearest_tree(step: Step, max_tokens: int) -> None:
    segments, groups = step
    batches = micro_batches(segments, groups, layout="packed", max_tokens=max_tokens)
    sizes = [batch.tokens for batch in batches if batch.tokens < max_tokens]
    largest = max((len(build_tree(segments, [i])) for i in range(len(segments))), default=0)
    # Cost is tokens plus what they see (at most 9 here) over 1024: within a tenth of a token for each.
    assert not sizes or max(sizes) - min(sizes) <= largest + 0.1 * max(sizes)


@given(step_batches(), st.integers(1, 64))
def test_no_other_number_of_rows_would_cost_less(step: Step, parity: int) -> None:
    segments, groups = step

    def cost(batch: MicroBatch) -> float:
        rows, length = batch.input_ids.shape
        return rows * length * (1 + length / parity)

    for batch in micro_batches(segments, groups, layout="tree", max_tokens=10_000, parity_tokens=parity):
        lengths = [stop - start for start, stop in batch.spans]
        one_row = sum(lengths) * (1 + sum(lengths) / parity)
        row_each = len(lengths) * max(lengths) * (1 + max(lengths) / parity)
        assert cost(batch) <= min(one_row, row_each) + 1e-9


def test_a_shared_prompt_is_run_once_in_a_tree_and_once_per_row_elsewhere() -> None:
    rows = [segment([1, 2, 3, 4, 10 + i, 11, 12], [False] * 4 + [True] * 3) for i in range(5)]
    for layout, tokens in (("tree", 4 + 5 * 2), ("packed", 5 * 6), ("padded", 5 * 6)):
        (batch,) = micro_batches(rows, [0] * 5, layout=layout, max_tokens=1000)  # type: ignore[arg-type]
        assert batch.tokens == tokens, layout


def test_rows_of_different_groups_share_nothing() -> None:
    rows = [segment([1, 2, 3], [False, False, True])] * 2
    (batch,) = micro_batches(rows, ["a", "b"], layout="tree", max_tokens=1000)
    assert batch.tokens == 4


def test_a_hidden_state_that_predicts_several_tokens_is_gathered_once() -> None:
    rows = [segment([1, 2, 10 + i], [False, False, True]) for i in range(6)]
    (batch,) = micro_batches(rows, [0] * 6, layout="tree", max_tokens=1000)
    assert batch.predictors.tolist() == [1]
    assert batch.predictor.tolist() == [0] * 6


def test_one_row_without_padding_where_long_rows_cost_nothing_more() -> None:
    segments, groups = ragged_step(0)
    (batch,) = micro_batches(segments, groups, layout="tree", max_tokens=10_000)
    assert batch.input_ids.shape == (1, batch.tokens)


def test_padded_rows_need_no_mask_because_padding_comes_last() -> None:
    segments, groups = ragged_step(0)
    (batch,) = micro_batches(segments, groups, layout="padded", max_tokens=10_000)
    assert batch.attention_mask() is None
    assert batch.input_ids.shape[0] == len(segments)


def test_segments_without_policy_tokens_are_left_out() -> None:
    rows = [segment([1, 2], [False, False]), segment([1, 2], [False, True])]
    (batch,) = micro_batches(rows, [0, 0], layout="tree", max_tokens=1000)
    assert batch.segments == (1,)
    assert micro_batches(rows[:1], [0], layout="tree", max_tokens=1000) == []
    assert micro_batches([], [], layout="padded", max_tokens=1000) == []


@pytest.mark.parametrize(("groups", "max_tokens", "message"), [([0], 8, "for each of 2"), ([0, 0], 0, "at least 1")])
def test_arguments_that_do_not_fit_are_refused(groups: list[int], max_tokens: int, message: str) -> None:
    rows = [segment([1, 2], [False, True])] * 2
    with pytest.raises(ValueError, match=message):
        micro_batches(rows, groups, layout="tree", max_tokens=max_tokens)


@given(step_batches(), st.integers(1, 30), st.sampled_from(["tree", "packed", "padded"]), st.data())
def test_a_unit_is_never_split(
    step: tuple[list[Segment], list[str]], max_tokens: int, layout: Layout, data: st.DataObject
) -> None:
    """A unit is of one group here: of several, their trees make one bundle whatever its size."""
    segments, labels = step
    numbers = data.draw(st.lists(st.integers(0, 4), min_size=len(segments), max_size=len(segments)))
    units = list(zip(labels, numbers, strict=True))
    batches = micro_batches(segments, labels, units=units, layout=layout, max_tokens=max_tokens)
    homes: dict[tuple[str, int], set[int]] = {}
    for at, batch in enumerate(batches):
        for i in batch.segments:
            homes.setdefault(units[i], set()).add(at)
    assert all(len(places) == 1 for places in homes.values())
    found = [i for batch in batches for i in batch.segments]
    assert sorted(found) == [i for i, segment in enumerate(segments) if segment.mask.any()]
    most = max([batch.tokens for batch in batches if len({units[i] for i in batch.segments}) > 1], default=0)
    assert most <= max_tokens
