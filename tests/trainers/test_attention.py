"""Block attention against SDPA with the mask written out, and against finite differences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from quintain.trainers.batches.batch import micro_batches
from quintain.trainers.model.attention import _attention, plan_blocks

from .made_segments import ragged_step, step_batches

torch.set_num_threads(1)

HEADS, KEY_HEADS, WIDTH = 4, 2, 6


def operands(rows: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    # As projections leave them: [B, L, heads · width] seen as [B, heads, L, width].
    made = [torch.randn(rows, length, heads, WIDTH, dtype=dtype) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def run(q: Tensor, k: Tensor, v: Tensor, blocks: Any, **options: Any) -> Tensor:
    """[B, L, H, D] through the interface that transformers calls."""
    return _attention(torch.nn.Identity(), q, k, v, None, scaling=WIDTH**-0.5, token_blocks=blocks, **options)[0]


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def batch_of(step: Any, layout: Any, parity: int | None, queries: int) -> tuple[Any, Any, Tensor]:
    """(batch, its blocks, which places are not padding [B, L])."""
    segments, groups = step
    batches = micro_batches(segments, groups, layout=layout, max_tokens=10_000, parity_tokens=parity)
    if not batches:
        return None, None, torch.empty(0)
    (batch,) = batches
    rows, length = batch.input_ids.shape
    exits = batch.exits + torch.arange(0, rows * length, length)[:, None]
    real = torch.zeros(rows * length, dtype=torch.bool)
    for start, stop in batch.spans:
        real[start:stop] = True
    return batch, plan_blocks(exits.flatten().numpy(), batch.spans, queries), real.view(rows, length)


@settings(deadline=None)
@given(step_batches(), st.sampled_from(["tree", "packed"]), st.sampled_from([None, 4]), st.integers(1, 20))
def test_output_and_gradients_are_those_of_the_mask_written_out(
    step: Any, layout: Any, parity: int | None, queries: int
) -> None:
    batch, blocks, real = batch_of(step, layout, parity, queries)
    if batch is None:
        return
    q, k, v = operands(*batch.input_ids.shape)
    got, expected = run(q, k, v, blocks), written_out(q, k, v, batch.attention_mask())
    torch.testing.assert_close(got[real], expected[real])
    upstream = torch.randn_like(got) * real[..., None, None]
    grads = [torch.autograd.grad(x, (q, k, v), upstream) for x in (got, expected)]
    torch.testing.assert_close(*grads)


def test_the_gradient_agrees_with_finite_differences() -> None:
    batch, blocks, _ = batch_of(ragged_step(0), "tree", None, 16)
    q, k, v = operands(*batch.input_ids.shape)
    assert len(blocks) > 1
    assert torch.autograd.gradcheck(lambda q, k, v: run(q, k, v, blocks), (q, k, v), fast_mode=True)


@given(step_batches(), st.integers(1, 20))
def test_blocks_cover_every_tree_once_and_hold_no_key_that_no_query_sees(step: Any, queries: int) -> None:
    batch, blocks, _ = batch_of(step, "tree", None, queries)
    if batch is None:
        return
    mask = batch.attention_mask()[0, 0].numpy()
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(batch.tokens))
    for block in blocks:
        keys = [j for start, stop in block.keys for j in range(start, stop)]
        seen = mask[block.start : block.stop]
        assert keys == np.flatnonzero(seen.any(0)).tolist()
        assert seen[:, keys[: block.open]].all()
        assert np.array_equal(block.bias[:, 0].numpy() == 0, seen[:, keys[block.open :]])


def test_sixteen_bit_inputs_are_summed_in_float32() -> None:
    batch, blocks, _ = batch_of(ragged_step(1), "tree", None, 16)
    exact = operands(*batch.input_ids.shape, torch.float32)
    coarse = [x.detach().bfloat16().requires_grad_() for x in exact]
    got, expected = run(*coarse, blocks), written_out(*(x.detach().double() for x in coarse), batch.attention_mask())
    assert got.dtype == torch.bfloat16
    assert float((got.detach().double() - expected).abs().max()) < 0.02
    assert all(x.dtype == torch.bfloat16 for x in torch.autograd.grad(got.sum(), coarse))


def test_without_blocks_it_is_plain_causal_attention() -> None:
    q, k, v = operands(2, 9)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    got, _ = _attention(module, q, k, v, None, scaling=WIDTH**-0.5)
    torch.testing.assert_close(got, written_out(q, k, v, torch.ones(9, 9).tril().bool()))


@pytest.mark.parametrize("option", [{"sliding_window": 4}, {"softcap": 30.0}, {"dropout": 0.1}])
def test_what_a_block_cannot_do_is_refused_by_name(option: dict[str, Any]) -> None:
    batch, blocks, _ = batch_of(ragged_step(0), "tree", None, 16)
    with pytest.raises(ValueError, match=next(iter(option))):
        run(*operands(*batch.input_ids.shape), blocks, **option)
