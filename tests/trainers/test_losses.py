"""Policy losses against TRL 1.16's own code: value, gradient and metrics, for every loss type and option."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.experimental.gmpo import GMPOTrainer

from quintain.config.loss import BY_SEQUENCE, LossOptions, LossType
from quintain.trainers.losses.metrics import metric_values
from quintain.trainers.losses.policy import entropy_bonus

from . import trl_oracle
from .loss_batches import (
    LONGEST,
    ROWS,
    Batch,
    flat,
    make_batch,
    random_advantages,
    rows_of,
    run,
    totals,
    trl_options,
    whole_run,
)

torch.set_num_threads(1)

OURS = ("gmpo", "dppo_tv", "dppo_kl")
"""Loss types that TRL's GRPOTrainer does not have: against its GMPOTrainer, and in closed form."""
LOSS_TYPES = [name for name in get_args(LossType) if name not in OURS]

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "asymmetric clip": {"epsilon": 0.1, "epsilon_high": 0.4},
    "two-sided clip": {"delta": 1.5},
    "kl": {"beta": 0.2},
    "kl without bias correction": {"beta": 0.2, "use_bias_correction_kl": False},
    "sequence level": {"importance_sampling_level": "sequence", "epsilon": 0.05},
    "sequence level with kl": {"importance_sampling_level": "sequence", "epsilon": 0.05, "beta": 0.2},
    "top entropies": {"top_entropy_quantile": 0.3},
    "the one highest entropy": {"top_entropy_quantile": 0.0},
    "truncated rows masked": {"mask_truncated_completions": True},
    "truncated rows masked, top entropies": {"mask_truncated_completions": True, "top_entropy_quantile": 0.4},
    "off-policy mask": {"off_policy_mask_threshold": 0.05},
    "tis": {"off_policy_correction": "tis", "importance_sampling_clip_max": 1.2},
    "tis, both bounds": {
        "off_policy_correction": "tis",
        "importance_sampling_clip_min": 0.8,
        "importance_sampling_clip_max": 1.2,
    },
    "icepop": {
        "off_policy_correction": "icepop",
        "importance_sampling_clip_min": 0.8,
        "importance_sampling_clip_max": 1.2,
    },
    "icepop, lower bound only": {
        "off_policy_correction": "icepop",
        "importance_sampling_clip_min": 0.9,
        "importance_sampling_clip_max": None,
    },
    "sequence mask": {"off_policy_correction": "sequence_mask", "importance_sampling_clip_max": 1.5},
    "sequence truncate": {
        "off_policy_correction": "sequence_truncate",
        "importance_sampling_clip_min": 0.7,
        "importance_sampling_clip_max": 1.5,
    },
    "off-policy mask by the sampler, tis": {
        "off_policy_mask_threshold": 0.05,
        "off_policy_correction": "tis",
    },
    "other temperatures and weights": {
        "sapo_temperature_pos": 0.7,
        "sapo_temperature_neg": 1.4,
        "vespo_k_pos": 1.0,
        "vespo_lambda_pos": 0.5,
        "vespo_k_neg": 2.0,
        "vespo_lambda_neg": 1.0,
    },
    "everything": {
        "epsilon_high": 0.3,
        "delta": 1.4,
        "beta": 0.1,
        "top_entropy_quantile": 0.7,
        "mask_truncated_completions": True,
        "off_policy_mask_threshold": 0.1,
        "off_policy_correction": "tis",
    },
}


def trl(batch: Batch, advantages: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, dict[str, float]]:
    """TRL's loss, gradient [B · L] and metrics for the same batch."""
    names = trl_options(options)
    inputs, scored = trl_oracle.score(batch, **names)
    inputs["advantages"] = advantages
    if options.off_policy_correction in ("none", "geometric_mask", "decoupled"):
        inputs.pop("importance_sampling_ratio", None)
    if options.off_policy_correction in ("geometric_mask", "decoupled"):
        inputs["importance_sampling_ratio"] = closed_form_factor(batch, options)
    loss, gradient, metrics = trl_oracle.loss(batch, inputs, **names)
    return loss, gradient.flatten(), scored | metrics


def closed_form_factor(batch: Batch, options: LossOptions) -> Tensor:
    """[B, L], token by token in Python: the two corrections that TRL does not have."""
    assert batch.old_logp is not None
    assert batch.sampler_logp is not None
    factor = torch.ones_like(batch.logp)
    low = options.importance_sampling_clip_min or 0.0
    high = options.importance_sampling_clip_max or math.inf
    for b in range(ROWS):
        used = [t for t in range(batch.lengths[b]) if batch.tool_mask[b, t]]
        if options.mask_truncated_completions and batch.truncated[b]:
            used = []
        weights = [math.exp(batch.old_logp[b, t].item() - batch.sampler_logp[b, t].item()) for t in used]
        if options.off_policy_correction == "geometric_mask":
            mean = math.prod(weights) ** (1 / max(len(weights), 1))
            factor[b] = 1.0 if low <= mean <= high else 0.0
        else:
            for t, weight in zip(used, weights, strict=True):
                factor[b, t] = weight
    return factor


def assert_equals_trl(batch: Batch, advantages: Tensor, options: LossOptions) -> None:
    value, gradient, _ = whole_run(flat(batch, advantages, options), options)
    expected, expected_gradient, _ = trl(batch, advantages, options)
    # TRL rounds SAPO's temperatures to float32, whatever the dtype of the rest.
    rtol = 1e-6 if options.loss_type == "sapo" else 1e-9
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12, check_dtype=False)
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_value_and_gradient_are_those_of_trl(loss_type: Any, name: str) -> None:
    if loss_type == "vespo" and OPTIONS[name].get("off_policy_correction") in BY_SEQUENCE:
        with pytest.raises(ValueError, match="takes no separate factor"):
            LossOptions(loss_type=loss_type, **OPTIONS[name])
        return
    options = LossOptions(loss_type=loss_type, **OPTIONS[name])
    for seed in range(2):
        batch = make_batch(seed, sampler=options.off_policy_correction != "none", truncated=True)
        assert_equals_trl(batch, random_advantages(seed), options)


@st.composite
def any_options(draw: st.DrawFn) -> LossOptions:
    loss_type = draw(st.sampled_from(LOSS_TYPES))
    corrections = ["none", "tis", "icepop", "decoupled"] + sorted(BY_SEQUENCE) * (loss_type != "vespo")
    return LossOptions(
        loss_type=loss_type,
        epsilon=draw(st.sampled_from([0.0, 0.1, 0.2])),
        epsilon_high=draw(st.sampled_from([None, 0.28, 5.0])),
        delta=draw(st.sampled_from([None, 1.1, 2.0])),
        beta=draw(st.sampled_from([0.0, 0.05])),
        use_bias_correction_kl=draw(st.booleans()),
        importance_sampling_level=draw(st.sampled_from(["token", "sequence"])),
        top_entropy_quantile=draw(st.sampled_from([1.0, 0.5, 0.2])),
        mask_truncated_completions=draw(st.booleans()),
        off_policy_mask_threshold=draw(st.sampled_from([None, 0.02, 0.2])),
        off_policy_correction=draw(st.sampled_from(corrections)),  # type: ignore[arg-type]
        importance_sampling_clip_max=draw(st.sampled_from([1.1, 3.0])),
        importance_sampling_clip_min=draw(st.sampled_from([None, 0.9])),
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(options=any_options(), seed=st.integers(0, 10**6), drift=st.sampled_from([0.05, 0.5, 2.0]))
def test_any_combination_of_options_is_that_of_trl(options: LossOptions, seed: int, drift: float) -> None:
    sampler = options.off_policy_correction != "none"
    batch = make_batch(seed, drift=drift, sampler=sampler, truncated=True)
    assert_equals_trl(batch, random_advantages(seed), options)


@pytest.mark.parametrize("correction", ["geometric_mask", "decoupled"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_corrections_that_trl_lacks_have_their_closed_form(loss_type: Any, correction: Any) -> None:
    if (loss_type, correction) == ("vespo", "geometric_mask"):
        with pytest.raises(ValueError, match="geometric_mask"):
            LossOptions(loss_type=loss_type, off_policy_correction=correction)
        return
    bounds = {"importance_sampling_clip_min": 0.95, "importance_sampling_clip_max": 1.1}
    options = LossOptions(loss_type=loss_type, off_policy_correction=correction, **bounds)
    batch = make_batch(3, sampler=True)
    if correction == "geometric_mask":
        kept = closed_form_factor(batch, options)[:, 0]
        assert 0 < kept.sum() < ROWS
    assert_equals_trl(batch, random_advantages(3), options)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_old_log_probabilities_the_policy_itself_is_the_proximal_one(loss_type: Any) -> None:
    options = LossOptions(loss_type=loss_type, beta=0.1)
    assert_equals_trl(make_batch(4, on_policy=True), random_advantages(4), options)


@pytest.mark.parametrize("correction", ["tis", "icepop", "none"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_tokens_the_sampler_could_not_score_are_neither_corrected_nor_evidence(loss_type: Any, correction: Any) -> None:
    options = LossOptions(loss_type=loss_type, off_policy_correction=correction, off_policy_mask_threshold=0.05)
    batch = make_batch(5, sampler=True)
    assert batch.sampler_logp is not None
    sampler = batch.sampler_logp.clone()
    sampler[:, ::2] = float("nan")
    assert_equals_trl(replace(batch, sampler_logp=sampler), random_advantages(5), options)


@pytest.mark.parametrize("distance", [-30.0, -6.0, 6.0])
def test_vespo_weights_at_their_bounds_are_those_of_trl(distance: float) -> None:
    """These weights are so small that only the relative error says anything."""
    options = LossOptions(loss_type="vespo", vespo_lambda_pos=0.01, vespo_lambda_neg=0.01, vespo_k_neg=1.0)
    batch = make_batch(9)
    batch, advantages = replace(batch, old_logp=batch.logp - distance), random_advantages(9)
    _, gradient, _ = whole_run(flat(batch, advantages, options), options)
    _, expected, _ = trl(batch, advantages, options)
    assert expected.norm() > 0
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()  # TRL rounds the decay to float32


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_float32_agrees_with_trl_in_float64_to_rounding(loss_type: Any) -> None:
    options = LossOptions(loss_type=loss_type, beta=0.1)
    batch, advantages = make_batch(6), random_advantages(6)
    _, gradient, _ = whole_run(flat(batch, advantages, options, torch.float32), options)
    _, expected, _ = trl(batch, advantages, options)
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_of_equal_row_counts_add_up_to_trls_accumulated_loss(loss_type: Any) -> None:
    """bnpo included: its dependence on the cut is TRL's."""
    options = LossOptions(loss_type=loss_type)
    batch, advantages = make_batch(7), random_advantages(7)
    inputs = flat(batch, advantages, options)
    halves = [[0, 1, 2], [3, 4, 5]]
    _, gradient, _ = run(inputs, options, [rows_of(inputs, half) for half in halves])

    scored, _ = trl_oracle.score(batch)
    expected = torch.zeros(ROWS, LONGEST, dtype=torch.float64)
    for half in halves:
        piece = replace(batch, logp=batch.logp[half], entropy=None if batch.entropy is None else batch.entropy[half])
        given_inputs = {
            name: value[half] if isinstance(value, Tensor) and value.dim() else value for name, value in scored.items()
        } | {"advantages": advantages[half]}
        names = trl_options(options) | {"gradient_accumulation_steps": 2, "steps_per_generation": 2}
        _, part, _ = trl_oracle.loss(piece, given_inputs, **names)
        expected[half] = part
    torch.testing.assert_close(gradient, expected.flatten(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_metrics_are_those_of_trl(loss_type: Any, level: Any) -> None:
    options = LossOptions(
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.1,
        off_policy_correction="tis",
        epsilon=0.1,
    )
    batch, advantages = make_batch(8, sampler=True, drift=1.0), random_advantages(8)
    ours = metric_values(whole_run(flat(batch, advantages, options), options)[2])
    theirs = trl(batch, advantages, options)[2]
    shared = set(ours) & set(theirs)
    assert {"kl", "entropy", "sampling/sampling_logp_difference/mean"} <= shared
    assert {name for name in theirs if "reward" not in name} == shared
    assert set(ours) - shared == {"sampling/effective_sample_size"}
    for name in shared:
        assert ours[name] == pytest.approx(theirs[name], rel=2e-6, abs=1e-9), name


@pytest.mark.parametrize(
    "more", [{}, {"beta": 0.2, "use_bias_correction_kl": False}, {"epsilon": 0.05, "epsilon_high": 0.4}], ids=str
)
def test_gmpo_is_that_of_trls_gmpo_trainer(more: dict[str, Any]) -> None:
    options = LossOptions(loss_type="gmpo", **more)
    for seed in range(4):
        batch, advantages = make_batch(seed, truncated=True, drift=0.5), random_advantages(seed)
        value, gradient, metrics = whole_run(flat(batch, advantages, options), options)
        names = trl_options(options)
        inputs, _ = trl_oracle.score(batch, **names)
        inputs["advantages"] = advantages
        expected, expected_gradient, theirs = trl_oracle.loss(batch, inputs, trainer_class=GMPOTrainer, **names)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, check_dtype=False)
        torch.testing.assert_close(gradient, expected_gradient.flatten(), rtol=1e-9, atol=1e-12)
        ours = metric_values(metrics)
        for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["dppo_tv", "dppo_kl"])
def test_dppo_drops_a_token_exactly_where_a_step_leads_further_away_than_the_threshold(kind: Any) -> None:
    """Token by token in Python: −ρ·A unless the divergence is above the threshold and the step makes it larger."""
    options = LossOptions(loss_type=kind, dppo_threshold=0.05)
    for seed in range(4):
        batch, advantages = make_batch(seed, sampler=True, drift=0.5), random_advantages(seed)
        assert batch.sampler_logp is not None
        batch = replace(batch, logp=batch.logp - 0.01, sampler_logp=batch.sampler_logp.clamp(max=-0.01))
        inputs = flat(batch, advantages, options)
        value, gradient, _ = whole_run(inputs, options)
        total, slopes, dropped = 0.0, torch.zeros_like(gradient), 0
        assert inputs.old_logp is not None
        assert inputs.sampler_logp is not None
        for t in inputs.mask.nonzero()[:, 0].tolist():
            a, p, q = (
                float(inputs.advantage[t]),
                float(inputs.logp[t].detach().exp()),
                float(inputs.sampler_logp[t].exp()),
            )
            ratio = math.exp(float(inputs.logp[t].detach() - inputs.old_logp[t]))
            tv, kl = abs(p - q), q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
            if (tv if kind == "dppo_tv" else kl) > 0.05 and ((a > 0 and ratio > 1) or (a <= 0 and ratio < 1)):
                dropped += a != 0
                continue
            total -= ratio * a
            slopes[t] = -ratio * a
        count = int(inputs.mask.sum())
        assert float(value) == pytest.approx(total / count, rel=1e-6)
        torch.testing.assert_close(gradient, slopes / count, rtol=1e-6, atol=1e-9)
    assert dropped


def test_the_entropy_bonus_is_the_mean_over_the_tokens_of_the_batch_whatever_the_loss_and_the_cut() -> None:
    inputs = flat(make_batch(0), random_advantages(0), LossOptions())
    entropy = torch.rand(len(inputs.logp), dtype=torch.float64, requires_grad=True)
    whole = replace(inputs, entropy=entropy)
    counts = totals(whole)
    for parts in ([whole], [rows_of(whole, [0, 3]), rows_of(whole, [1, 2, 4, 5])]):
        bonus = torch.stack([entropy_bonus(part, counts) for part in parts]).sum()
        (gradient,) = torch.autograd.grad(bonus, entropy)
        assert float(bonus) == pytest.approx(float(entropy.detach()[inputs.mask].mean()))
        torch.testing.assert_close(gradient, torch.where(inputs.mask, 1 / inputs.mask.sum(), 0.0).double())


@pytest.mark.parametrize("kind", ["clip", "kl"])
def test_covariant_tokens_get_no_gradient_or_are_held_to_the_policy_before(kind: Any) -> None:
    """As in verl: −A·ρ without a gradient (Clip-Cov), or with + coef·|log ρ| (KL-Cov), at the chosen tokens alone."""
    options = LossOptions(loss_type="dapo", covariance=kind, covariance_kl_coef=0.7, epsilon=0.9, epsilon_high=9.0)
    inputs = flat(make_batch(2), random_advantages(2), options)
    covariant = (torch.arange(len(inputs.logp)) % 3 == 0).double()
    inputs = replace(inputs, columns={"covariant": covariant})
    value, gradient, _ = whole_run(inputs, options)
    plain, plain_gradient, _ = whole_run(inputs, LossOptions(loss_type="dapo", epsilon=0.9, epsilon_high=9.0))
    assert inputs.old_logp is not None
    log_ratio, count = (inputs.logp - inputs.old_logp).detach(), inputs.mask.sum()
    chosen = (covariant > 0) & inputs.mask
    if kind == "clip":
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(gradient, torch.where(chosen, 0.0, plain_gradient))
    else:
        torch.testing.assert_close(value, plain + 0.7 * log_ratio.abs()[chosen].sum() / count)
        pull = 0.7 * log_ratio.sign() / count
        torch.testing.assert_close(gradient, plain_gradient + torch.where(chosen, pull, 0.0))
