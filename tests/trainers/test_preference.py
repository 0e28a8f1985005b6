"""Preference losses against TRL's own code, value and gradient, and against finite differences."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from quintain.config.preference import SORTED, CPOOptions, PairLossType, PreferenceOptions
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import fetched
from quintain.trainers.losses.preference import (
    bco_losses,
    cpo_losses,
    kto_losses,
    odds_ratio_losses,
    pair_losses,
    pair_metrics,
    pairs_of,
    reward_losses,
)

from .trl_oracle import Accelerator

PAIRS, LONGEST = 5, 9

PAIR_LOSS_TYPES = get_args(PairLossType)
OPTIONS: dict[str, dict[str, Any]] = {
    **{kind: {"loss_type": [kind]} for kind in PAIR_LOSS_TYPES if kind != "exo_pair"},
    **{f"{kind}, smoothed": {"loss_type": [kind], "label_smoothing": 0.1} for kind in ("robust", "aot", "exo_pair")},
    "aot_unpaired, smoothed": {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2},
    "exo_pair of the paper": {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    "another tau": {"loss_type": ["discopop"], "discopop_tau": 0.5, "beta": 0.5},
    "MPO": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "several, unweighted": {"loss_type": ["sigmoid", "apo_zero"], "beta": 0.3},
    **{
        f"{kind}, {divergence}": {"loss_type": [kind], "f_divergence_type": divergence}
        for kind in ("sigmoid", "ipo", "sigmoid_norm", "hinge")
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
    },
    "alpha 1 is reverse_kl": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
    "alpha 2": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.0, "loss_type": ["sigmoid"]},
    "ld_alpha": {"ld_alpha": 0.3},
    "ld_alpha 0": {"ld_alpha": 0.0, "loss_type": ["sppo_hard", "sft"]},
    "WPO": {"use_weighting": True},
    "WPO, two losses": {"use_weighting": True, "loss_type": ["sigmoid", "ipo"], "loss_weights": [0.5, 2.0]},
}


class StandIn(torch.nn.Module):
    """What TRL takes for a model whose fused head gives `log_probs` [B, L], 0 where there is no label."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, log_mass: Tensor | None = None) -> None:
        super().__init__()
        zeros = torch.zeros(log_probs.shape)
        self.outputs = SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=log_mass
        )

    def forward(self, **_: Any) -> Any:
        return self.outputs


class Case:
    """P pairs of random completions after prompts of one token: [2P, L], TRL's order (chosen first, then rejected)."""

    def __init__(self, seed: int, spread: float = 0.5) -> None:
        g = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, LONGEST + 1, (2 * PAIRS,), generator=g)
        self.lengths[0] = LONGEST
        self.mask = torch.arange(LONGEST)[None] < self.lengths[:, None]
        self.logp = -torch.rand(2 * PAIRS, LONGEST, generator=g) * 2
        self.ref = self.logp + torch.randn(2 * PAIRS, LONGEST, generator=g) * spread
        self.log_mass = -torch.rand(2 * PAIRS, LONGEST, generator=g)

    def inputs(self, *, dtype: torch.dtype = torch.float32) -> LossInputs:
        """The same as flat tensors, rows chosen, rejected, chosen, ..."""
        order = torch.arange(2 * PAIRS).view(2, PAIRS).t().flatten()

        def flat(values: Tensor) -> Tensor:
            return values[order].flatten().to(dtype if values.is_floating_point() else values.dtype)

        return LossInputs(
            logp=flat(self.logp).requires_grad_(),
            row=torch.arange(2 * PAIRS).repeat_interleave(LONGEST),
            rows=2 * PAIRS,
            advantage=torch.zeros(2 * PAIRS * LONGEST, dtype=dtype),
            mask=flat(self.mask),
            ref_logp=flat(self.ref),
        )

    def in_trl_order(self, gradient: Tensor) -> Tensor:
        order = torch.arange(2 * PAIRS).view(2, PAIRS).t().flatten()
        out = torch.empty(2 * PAIRS, LONGEST, dtype=gradient.dtype)
        out[order] = gradient.view(2 * PAIRS, LONGEST)
        return out


def trl(case: Case, options: PreferenceOptions) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss, gradient [2P, L] and metrics of `DPOTrainer._compute_loss`, its model replaced by given tensors."""
    logp = case.logp.clone().requires_grad_()
    completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.int64), case.mask.long()], 1)

    named = options.model_dump()
    model = StandIn(logp * case.mask, case.log_mass)
    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        model=model,
        ref_model=StandIn(case.ref * case.mask, case.log_mass),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=options.discopop_tau),
        precompute_ref_logps=False,
        loss_types=options.loss_type,
        loss_weights=options.loss_weights or [1.0] * len(options.loss_type),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{name: named[name] for name in named if name not in ("loss_type", "loss_weights", "discopop_tau")},
    )
    inputs = {"input_ids": completion, "attention_mask": completion, "completion_mask": completion}
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def ours(case: Case, options: PreferenceOptions) -> tuple[Tensor, Tensor, dict[str, float]]:
    inputs = case.inputs()
    log_mass = None
    if options.use_weighting:
        log_mass = case.log_mass.view(2, PAIRS, LONGEST).transpose(0, 1).flatten()
    pairs = pairs_of(inputs, ld_alpha=options.ld_alpha, log_mass=log_mass)
    loss = pair_losses(pairs, options, mean_chosen_tokens=float(pairs.chosen_tokens.mean())).mean()
    (gradient,) = torch.autograd.grad(loss, inputs.logp)
    metrics = fetched(pair_metrics(pairs, options.beta))
    return loss.detach(), case.in_trl_order(gradient), {name: m.value() or 0.0 for name, m in metrics.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OPTIONS)
def test_a_pair_loss_and_its_gradient_and_metrics_are_trls(name: str, seed: int) -> None:
    options, case = PreferenceOptions(**OPTIONS[name]), Case(seed)
    loss, gradient, metrics = ours(case, options)
    trl_loss, trl_gradient, trl_metrics = trl(case, options)
    torch.testing.assert_close(loss, trl_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, trl_gradient, rtol=1e-4, atol=1e-6)
    for metric, value in metrics.items():
        assert value == pytest.approx(trl_metrics[metric], rel=1e-5, abs=1e-5), metric


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(set(PAIR_LOSS_TYPES) - SORTED)), cut=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_parts_of_a_batch_add_up_to_the_whole_however_it_is_cut(seed: int, kind: str, cut: int) -> None:
    options = PreferenceOptions(loss_type=[kind], label_smoothing=0.1, ld_alpha=0.4)
    inputs = Case(seed).inputs(dtype=torch.float64)
    whole = pairs_of(inputs, ld_alpha=0.4)
    mean = float(whole.chosen_tokens.mean())
    first = inputs.row < 2 * cut

    def part(keep: Tensor, start: int, rows: int) -> LossInputs:
        assert inputs.ref_logp is not None
        return LossInputs(
            logp=inputs.logp[keep],
            row=inputs.row[keep] - start,
            rows=rows,
            advantage=inputs.advantage[keep],
            mask=inputs.mask[keep],
            ref_logp=inputs.ref_logp[keep],
        )

    parts = [part(first, 0, 2 * cut), part(~first, 2 * cut, 2 * PAIRS - 2 * cut)]
    pieces = [pair_losses(pairs_of(p, ld_alpha=0.4), options, mean_chosen_tokens=mean) for p in parts]
    torch.testing.assert_close(torch.cat(pieces), pair_losses(whole, options, mean_chosen_tokens=mean))


@pytest.mark.parametrize("kind", PAIR_LOSS_TYPES)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    options = PreferenceOptions(loss_type=[kind], label_smoothing=0.1, beta=0.7)
    inputs = Case(3).inputs(dtype=torch.float64)
    rows = torch.randn(2 * PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(offsets: Tensor) -> Tensor:
        moved = LossInputs(
            logp=inputs.logp.detach() + offsets[inputs.row] / LONGEST,
            row=inputs.row,
            rows=inputs.rows,
            advantage=inputs.advantage,
            mask=inputs.mask,
            ref_logp=inputs.ref_logp,
        )
        return pair_losses(pairs_of(moved), options, mean_chosen_tokens=4.0).sum()

    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(),))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "sppo_hard", "discopop", "sigmoid_norm", "exo_pair"])
@pytest.mark.parametrize("distance", [0.0, 100.0, 3000.0])
def test_a_loss_and_its_gradient_are_finite_far_from_the_reference(kind: str, distance: float) -> None:
    options = PreferenceOptions(loss_type=[kind], label_smoothing=0.1)
    case = Case(0)
    case.ref = case.logp - distance * torch.tensor([1.0] * PAIRS + [-1.0] * PAIRS)[:, None]
    inputs = case.inputs()
    loss = pair_losses(pairs_of(inputs), options, mean_chosen_tokens=3.0).sum()
    (gradient,) = torch.autograd.grad(loss, inputs.logp)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_an_odd_number_of_rows_is_no_pairs() -> None:
    with pytest.raises(ValueError, match="expected pairs of a chosen and a rejected one, got 3"):
        pairs_of(
            LossInputs(
                logp=torch.zeros(3),
                row=torch.arange(3),
                rows=3,
                advantage=torch.zeros(3),
                mask=torch.ones(3, dtype=torch.bool),
            )
        )


def _completions(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Log-probabilities per token of chosen and rejected [P], negative."""
    g = torch.Generator().manual_seed(seed)
    return tuple((-torch.rand(count, generator=g) * 3 - 1e-3).requires_grad_() for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(3))
def test_the_odds_ratio_loss_is_trls(seed: int) -> None:
    chosen, rejected = _completions(seed)
    losses, log_odds = odds_ratio_losses(chosen, rejected, 0.1)
    stand_in: Any = SimpleNamespace(beta=0.1, accelerator=Accelerator())
    theirs, _, _, _, their_odds = ORPOTrainer.odds_ratio_loss(stand_in, chosen, rejected)
    torch.testing.assert_close(losses, -theirs, rtol=1e-5, atol=1e-6)  # TRL subtracts it
    torch.testing.assert_close(log_odds.mean(), their_odds, rtol=1e-5, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(losses.sum(), (chosen, rejected)),
        torch.autograd.grad(-theirs.sum(), (chosen, rejected)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_certain_completion_has_a_finite_odds_ratio() -> None:
    chosen = torch.tensor([0.0, -1e-9, -50.0]).requires_grad_()
    losses, _ = odds_ratio_losses(chosen, torch.tensor([-1.0, -1.0, -1.0]), 0.1)
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2},
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
        {"loss_type": "simpo", "label_smoothing": 0.1},
        {"loss_type": "simpo", "alpha": 0.25},
        {"loss_type": "simpo", "alpha": -0.5},
        {"alpha": 0.1},
    ],
    ids=str,
)
def test_cpo_simpo_and_alphapo_are_trls(options: dict[str, Any], seed: int) -> None:
    chosen, rejected = _completions(seed)
    wanted = CPOOptions(**options)
    found = cpo_losses(chosen, rejected, wanted)
    stand_in: Any = SimpleNamespace(accelerator=Accelerator(), **wanted.model_dump())
    theirs = CPOTrainer.cpo_loss(stand_in, chosen, rejected)
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found[0].sum(), (chosen, rejected)),
        torch.autograd.grad(theirs[0].sum(), (chosen, rejected)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("labels", [[True, False, True, False, False, True], [True] * 6, [False] * 6], ids=str)
def test_kto_and_its_kl_are_trls(kind: str, labels: list[bool]) -> None:
    g = torch.Generator().manual_seed(7)
    logp, ref = (-torch.rand(6, 4, generator=g) for _ in range(2))
    other_logp, other_ref = (-torch.rand(6, 4, generator=g) for _ in range(2))
    given_logp = logp.clone().requires_grad_()

    model = StandIn(given_logp)
    trainer: Any = SimpleNamespace(
        accelerator=Accelerator(),
        model=model,
        ref_model=StandIn(ref),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=kind == "kto",
        loss_type=kind,
        beta=0.3,
        desirable_weight=1.0,
        undesirable_weight=0.7,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    kl_logps = iter([other_logp.sum(1), other_ref.sum(1)])
    trainer._compute_kl_logps = lambda *_: next(kl_logps)
    ids = torch.ones(6, 5, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids, "label": torch.tensor(labels)}
    theirs = KTOTrainer._compute_loss(trainer, model, batch, False)
    (their_gradient,) = torch.autograd.grad(theirs, given_logp)

    mine = logp.clone().requires_grad_()
    desirable = torch.tensor(labels)
    kl = (other_logp.sum(1) - other_ref.sum(1)).mean().clamp(min=0) if kind == "kto" else None
    losses = kto_losses((mine - ref).sum(1), desirable, 0.3, kl)
    loss = (losses * torch.where(desirable, 1.0, 0.7)).mean()
    (gradient,) = torch.autograd.grad(loss, mine)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_bco_is_the_logistic_loss_of_rewards_around_their_mean() -> None:
    """TRL dropped BCO after 1.12; its `bco_loss` there gives these numbers for these inputs."""
    ratio = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64).requires_grad_()
    desirable = torch.tensor([True, True, False, False])
    losses = bco_losses(ratio, desirable, 0.5, 0.1)
    expected = torch.tensor(
        [0.6209570484788153, 1.0374879514479884, 1.2411538736726904, 0.6443966593657348], dtype=torch.float64
    )
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(lambda x: bco_losses(x, desirable, 0.5, 0.1), (ratio,))


@pytest.mark.parametrize("margin", [None, [0.5, 0.0, 1.5]])
@pytest.mark.parametrize("centring", [None, 0.01])
def test_the_reward_models_loss_is_trls(margin: list[float] | None, centring: float | None) -> None:
    scores = torch.tensor([1.0, -2.0, 0.3, 0.5, 0.0, -1.0]).requires_grad_()
    inputs = {"attention_mask": torch.ones(6, 2)} | ({} if margin is None else {"margin": torch.tensor(margin)})

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(logits=scores[:, None])

    trainer: Any = SimpleNamespace(
        model=Model(),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        accelerator=Accelerator(),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    theirs = RewardTrainer.compute_loss(trainer, trainer.model, inputs)
    found = reward_losses(
        scores[:3],
        scores[3:],
        margin=None if margin is None else torch.tensor(margin),
        center_rewards_coefficient=centring,
    ).mean()
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(torch.autograd.grad(found, scores), torch.autograd.grad(theirs, scores))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}, "loss_weights has 1 entries for 2 loss types"),
        ({"loss_type": "nca_pair", "f_divergence_type": "forward_kl"}, "forward_kl has no meaning for nca_pair"),
        ({"loss_type": "aot", "use_weighting": True}, "use_weighting: aot sorts pairs"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "robust takes less than 0.5, got 0.5"),
        ({"loss_type": "exo_pair"}, "exo_pair takes more than 0 and less than 1"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceOptions(**options)


def test_options_have_trls_names_and_defaults() -> None:
    for name, field in PreferenceOptions.model_fields.items():
        theirs = DPOConfig.__dataclass_fields__[name]
        default = tuple(theirs.default_factory()) if callable(theirs.default_factory) else theirs.default
        assert field.default == default, name
    for name, field in CPOOptions.model_fields.items():
        assert field.default == CPOConfig.__dataclass_fields__[name].default, name
