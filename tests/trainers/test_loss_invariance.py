"""What must not change a policy loss: how the batch is cut, packed and padded, and what the mask hides.

And that gradients are gradients (finite differences), and stay finite where exponentials would not.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quintain.config.loss import LossOptions, LossType
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metric, combine, metric_values
from quintain.trainers.losses.offpolicy import entropy_threshold
from quintain.trainers.losses.policy import policy_loss, reduce
from quintain.trainers.rows import Totals

from .loss_batches import (
    LONGEST,
    ROWS,
    flat,
    make_batch,
    random_advantages,
    rows_of,
    run,
    select,
    threshold_of,
    totals,
    whole_run,
)

torch.set_num_threads(1)

LOSS_TYPES = get_args(LossType)
CUT_INDEPENDENT = [name for name in LOSS_TYPES if name != "bnpo"]


def busy(loss_type: Any, **other: Any) -> LossOptions:
    """Every part around the core switched on."""
    values: dict[str, Any] = {
        "loss_type": loss_type,
        "beta": 0.1,
        "top_entropy_quantile": 0.7,
        "off_policy_mask_threshold": 0.1,
        "off_policy_correction": "tis",
        "importance_sampling_clip_max": 1.3,
    }
    return LossOptions(**(values | other))


def batch_for(options: LossOptions, seed: int, dtype: torch.dtype = torch.float64, drift: float = 0.3) -> LossInputs:
    return flat(make_batch(seed, sampler=True, truncated=True, drift=drift), random_advantages(seed), options, dtype)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    loss_type=st.sampled_from(CUT_INDEPENDENT),
    level=st.sampled_from(["token", "sequence"]),
    seed=st.integers(0, 10**6),
    piece_of_row=st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
    truncated=st.booleans(),
)
def test_any_split_of_the_rows_into_micro_batches_gives_the_same_gradient_and_metrics(
    loss_type: Any, level: Any, seed: int, piece_of_row: list[int], truncated: bool
) -> None:
    options = busy(loss_type, importance_sampling_level=level, mask_truncated_completions=truncated)
    whole = batch_for(options, seed, torch.float32)
    pieces = [[row for row in range(ROWS) if piece_of_row[row] == piece] for piece in range(4)]
    loss, gradient, metrics = whole_run(whole, options)
    cut_loss, cut_gradient, cut_metrics = run(whole, options, [rows_of(whole, rows) for rows in pieces])
    assert (cut_gradient - gradient).norm() <= 1e-5 * gradient.norm()
    assert cut_loss.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert metric_values(cut_metrics) == pytest.approx(metric_values(metrics), rel=1e-6, abs=1e-9)


def test_bnpo_is_the_one_that_depends_on_the_cut() -> None:
    options = LossOptions(loss_type="bnpo")
    whole = batch_for(options, 0)
    _, gradient, _ = whole_run(whole, options)
    _, cut_gradient, _ = run(whole, options, [rows_of(whole, [0]), rows_of(whole, [1, 2, 3, 4, 5])])
    assert (cut_gradient - gradient).norm() > 1e-2 * gradient.norm()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_packed_tokens_in_any_order_give_the_gradient_of_padded_rows(loss_type: Any) -> None:
    options = busy(loss_type)
    padded = batch_for(options, 1)
    tokens = padded.mask.nonzero()[:, 0].tolist()
    random.Random(0).shuffle(tokens)
    packed = select(padded, torch.tensor(tokens), list(range(ROWS)))
    _, expected, _ = whole_run(padded, options)
    _, gradient, _ = run(padded, options, [packed])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("garbage", [float("nan"), float("-inf"), 1e30])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_token_outside_the_mask_may_hold_anything(loss_type: Any, garbage: float) -> None:
    options = busy(loss_type)
    clean = batch_for(options, 2, torch.float32)

    def spoiled(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(clean.mask, values.detach(), garbage)

    logp = spoiled(clean.logp)
    assert logp is not None
    advantage = spoiled(clean.advantage)
    assert advantage is not None
    dirty = replace(
        clean,
        logp=logp.requires_grad_(),
        advantage=advantage,
        old_logp=spoiled(clean.old_logp),
        sampler_logp=spoiled(clean.sampler_logp),
        ref_logp=spoiled(clean.ref_logp),
        entropy=spoiled(clean.entropy),
    )
    loss, gradient, metrics = whole_run(clean, options)
    dirty_loss, dirty_gradient, dirty_metrics = whole_run(dirty, options)
    assert torch.equal(dirty_loss, loss)
    assert torch.equal(dirty_gradient, gradient)
    assert (gradient[~clean.mask] == 0).all()
    assert dirty_metrics == metrics


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("distance", [50.0, 1e4])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_log_ratios_beyond_float32_leave_value_and_gradient_finite(loss_type: Any, distance: float, level: Any) -> None:
    options = busy(loss_type, off_policy_correction="decoupled", importance_sampling_level=level)
    near = batch_for(options, 3, torch.float32)
    assert near.old_logp is not None
    signs = torch.where(torch.arange(len(near.row)) % 2 == 0, distance, -distance)
    if level == "sequence":
        signs = torch.where(near.row % 2 == 0, distance, -distance)
    far = replace(near, old_logp=near.old_logp + signs, ref_logp=near.old_logp - signs)
    loss, gradient, metrics = whole_run(far, options)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(gradient.norm())
    assert all(torch.isfinite(torch.tensor(value)) for value in metric_values(metrics).values())


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_are_those_of_finite_differences(loss_type: Any, level: Any) -> None:
    """Weights under a stop-gradient (cispo, vespo) are held by moving ℓ_old along with ℓ."""
    options = LossOptions(
        loss_type=loss_type, importance_sampling_level=level, beta=0.1, delta=1.6, use_bias_correction_kl=True
    )
    held = loss_type in ("cispo", "vespo")
    if held:  # the bias-corrected KL is multiplied by ρ with its gradient, which holding ρ would hide
        options = options.model_copy(update={"use_bias_correction_kl": False})
    inputs = batch_for(options, 4)
    start, old, counts = inputs.logp.detach(), inputs.old_logp, totals(inputs)
    assert old is not None

    def loss(logp: Tensor) -> Tensor:
        moved = replace(inputs, logp=logp, old_logp=old + (logp.detach() - start) if held else old)
        return reduce(policy_loss(moved, options), moved, options.loss_type, counts)

    assert torch.autograd.gradcheck(loss, (start.clone().requires_grad_(),), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_rows_without_advantage_can_be_left_out_exactly_when_the_options_say_so(loss_type: Any) -> None:
    for beta in (0.0, 0.1):
        options = LossOptions(loss_type=loss_type, beta=beta, top_entropy_quantile=0.8)
        inputs = batch_for(options, 5)
        idle = (inputs.advantage == 0) & inputs.mask
        assert idle.any()
        rest = [row for row in range(ROWS) if row not in inputs.row[idle]]
        _, gradient, _ = whole_run(inputs, options)
        _, without, _ = run(inputs, options, [rows_of(inputs, rest)])
        same = bool((without - gradient).norm() <= 1e-12 * gradient.norm())
        assert same is options.zero_advantage_is_inert


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_truncated_row_leaves_the_token_count_and_stays_in_the_row_count(loss_type: Any) -> None:
    options = LossOptions(loss_type=loss_type, mask_truncated_completions=True)
    whole = batch_for(LossOptions(loss_type=loss_type), 6)
    truncated = torch.tensor([False, True, False, False, False, False])
    cut = replace(whole, mask=whole.mask & ~truncated[whole.row])
    assert totals(cut).rows == totals(whole).rows
    assert totals(cut).tokens == int(whole.mask.sum() - whole.mask[whole.row == 1].sum())
    _, gradient, _ = whole_run(cut, options)
    assert (gradient[cut.row == 1] == 0).all()
    # The other rows' share is what the counts make it: the gradient of five rows, rescaled by the rows.
    five = rows_of(whole, [0, 2, 3, 4, 5])
    (alone,) = torch.autograd.grad(
        reduce(policy_loss(five, options), five, options.loss_type, totals(five)), whole.logp
    )
    by_rows = options.loss_type in ("grpo", "sapo", "dr_grpo", "luspo", "gmpo")
    torch.testing.assert_close(gradient, alone * (5 / 6 if by_rows else 1.0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_micro_batch_without_tokens_contributes_zero_and_no_metrics(loss_type: Any) -> None:
    nothing = torch.zeros(0)
    empty = LossInputs(
        logp=nothing.clone().requires_grad_(),
        row=nothing.long(),
        rows=2,
        advantage=nothing,
        mask=nothing.bool(),
        sampler_logp=nothing,
        ref_logp=nothing,
        entropy=nothing,
    )
    per_token = policy_loss(empty, busy(loss_type), entropy_threshold=0.0)
    counts = Totals(rows=8, tokens=100, max_completion_length=LONGEST)
    loss = reduce(per_token, empty, loss_type, counts)
    loss.backward()
    assert loss.item() == 0.0
    assert metric_values(per_token.metrics) == {}


def test_log_probabilities_in_half_precision_are_computed_in_float32() -> None:
    options = busy("dapo")
    exact = batch_for(options, 7, torch.float32)
    half = replace(exact, logp=exact.logp.detach().bfloat16().requires_grad_())
    per_token = policy_loss(half, options, entropy_threshold=threshold_of(half, options))
    assert per_token.loss.dtype == torch.float32
    widened = replace(exact, logp=half.logp.detach().float())
    assert torch.equal(
        per_token.loss, policy_loss(widened, options, entropy_threshold=threshold_of(half, options)).loss
    )


def test_advantages_may_differ_within_a_row() -> None:
    """Two tokens of one row, one clipped above for A > 0, the other not clipped for A < 0."""
    inputs = LossInputs(
        logp=torch.log(torch.tensor([2.0, 2.0], dtype=torch.float64)).requires_grad_(),
        row=torch.tensor([0, 0]),
        rows=1,
        advantage=torch.tensor([1.0, -1.0]),
        mask=torch.tensor([True, True]),
        old_logp=torch.zeros(2, dtype=torch.float64),
    )
    assert policy_loss(inputs, LossOptions()).loss.tolist() == pytest.approx([-1.2, 2.0])


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 11, 101])
def test_the_entropy_threshold_is_the_quantile_and_ties_are_kept(count: int, quantile: float) -> None:
    entropies = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(count)).float()
    threshold = entropy_threshold(entropies, quantile)
    assert threshold == pytest.approx(torch.quantile(entropies.double(), 1 - quantile).item(), abs=1e-9)
    assert (entropies >= threshold).sum() >= quantile * (count - 1)


def test_without_any_entropies_the_threshold_keeps_nothing() -> None:
    assert entropy_threshold(torch.zeros(0), 0.5) == float("inf")


def test_the_effective_sample_size_is_one_for_equal_weights_and_one_token_of_n_for_one_huge_weight() -> None:
    def share(old: list[float]) -> float:
        inputs = LossInputs(
            logp=torch.zeros(4),
            row=torch.tensor([0, 0, 1, 1]),
            rows=2,
            advantage=torch.ones(4),
            mask=torch.ones(4, dtype=torch.bool),
            sampler_logp=torch.tensor(old),
        )
        return metric_values(policy_loss(inputs, LossOptions()).metrics)["sampling/effective_sample_size"]

    assert share([-1.0, -1.0, -1.0, -1.0]) == pytest.approx(1.0)
    assert share([-19.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25, rel=1e-6)


def test_metrics_of_nothing_are_the_identity_and_kinds_do_not_mix() -> None:
    low, high = Metric(Kind.MIN, 2.0, 3), Metric(Kind.MIN, 5.0, 1)
    nothing = Metric(Kind.MIN, float("inf"), 0)
    assert (low + high).value() == 2.0
    assert low + nothing == low
    assert nothing + low == low
    assert nothing.value() is None
    assert metric_values(combine([{"a": Metric(Kind.MAX, 2.0, 3)}, {"a": Metric(Kind.MAX, 5.0, 1)}])) == {"a": 5.0}
    assert metric_values(combine([{"a": Metric(Kind.MEAN, 2.0, 3)}, {"b": low}])) == {"a": 2 / 3, "b": 2.0}
    with pytest.raises(ValueError, match="one kind"):
        _ = low + Metric(Kind.MAX, 1.0, 1)
