"""What each off-policy correction makes of answers that an older policy gave, on a bandit whose optimum is known."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from quintain.config.loss import LossOptions
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.policy import entropy_bonus, policy_loss, reduce
from quintain.trainers.rows import Totals

torch.set_num_threads(1)
REWARD = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
ENTROPY = 0.3
"""Weight of the entropy: the optimum is softmax(reward / ENTROPY)."""
RATE, SAMPLES, STEPS, LAST = 12.0, 64, 80, 20


def gradient(scores: Tensor, arms: Tensor, sampler: Tensor, advantage: Tensor, options: LossOptions) -> Tensor:
    """[5]: of the loss on `arms` [N] that `sampler` (log-probabilities [5]) gave, with the entropy's bonus."""
    scores, count = scores.clone().requires_grad_(), len(arms)
    logp = scores.log_softmax(0)
    inputs = LossInputs(
        logp=logp[arms], row=torch.arange(count), rows=count, advantage=advantage, sampler_logp=sampler[arms],
        mask=torch.ones(count, dtype=torch.bool), entropy=-(logp.exp() * logp).sum().expand(count),
    )  # fmt: skip
    totals = Totals(rows=count, tokens=count, max_completion_length=1)
    loss = reduce(policy_loss(inputs, options), inputs, options.loss_type, totals)
    (found,) = torch.autograd.grad(loss - options.entropy_coef * entropy_bonus(inputs, totals), scores)
    return found


@pytest.mark.parametrize(
    ("correction", "bounds", "weight"),
    [
        ("none", {}, lambda w: torch.ones_like(w)),
        ("decoupled", {}, lambda w: w),
        ("tis", {"importance_sampling_clip_max": 1.5}, lambda w: w.clamp(max=1.5)),
        ("sequence_truncate", {"importance_sampling_clip_max": 1.5}, lambda w: w.clamp(max=1.5)),
        ("icepop", {"importance_sampling_clip_max": 1.5, "importance_sampling_clip_min": 0.5},
         lambda w: w * ((w >= 0.5) & (w <= 1.5))),
        ("sequence_mask", {"importance_sampling_clip_max": 1.5}, lambda w: w * (w <= 1.5)),
        ("geometric_mask", {"importance_sampling_clip_max": 1.5}, lambda w: (w <= 1.5).double()),
    ],
)  # fmt: skip
def test_the_expected_gradient_is_that_of_its_paper(correction: Any, bounds: dict[str, float], weight: Any) -> None:
    """Σ μ(a)·f(π(a)/μ(a))·A(a)·∇log π(a), over every answer as often as μ gives it; decoupled's is the policy gradient
    itself, and none's is not."""
    counts = torch.tensor([1, 1, 2, 4, 8])
    sampler, policy = (counts / 16).double(), torch.tensor([0.4, 0.05, 0.2, 0.25, 0.1], dtype=torch.float64)
    arms, advantage = torch.arange(5).repeat_interleave(counts), REWARD - 0.4
    options = LossOptions(off_policy_correction=correction, **bounds)
    found = -gradient(policy.log(), arms, sampler.log(), advantage[arms], options)
    share = sampler * weight(policy / sampler) * advantage
    expected = share - policy * share.sum()  # ∇log π(a) = 1[a] − π
    torch.testing.assert_close(found, expected)
    true = policy * advantage - policy * (policy * advantage).sum()
    assert torch.allclose(found, true) == (correction == "decoupled")


def distance(correction: str, *, staleness: int, seed: int) -> float:
    """How far (total variation) the policy is from the optimum over the last steps."""
    options = LossOptions(off_policy_correction=correction, entropy_coef=ENTROPY)  # type: ignore[arg-type]
    generator, optimum = torch.Generator().manual_seed(seed), (REWARD / ENTROPY).softmax(0)
    scores, past, found = torch.zeros(5, dtype=torch.float64), [], []
    for step in range(STEPS):
        past.append(scores)
        sampler = past[max(0, step - staleness)].log_softmax(0)
        arms = torch.multinomial(sampler.exp(), SAMPLES, replacement=True, generator=generator)
        rewards = REWARD[arms]
        scores = scores - RATE * gradient(scores, arms, sampler, rewards - rewards.mean(), options)
        found.append(float((scores.softmax(0) - optimum).abs().sum() / 2))
    return statistics.mean(found[-LAST:])


def test_at_staleness_four_the_corrected_find_the_optimum_and_the_uncorrected_overshoots_it() -> None:
    seeds = (0, 1, 2)
    near = {name: [distance(name, staleness=4, seed=seed) for seed in seeds] for name in ("tis", "icepop", "decoupled")}
    near["on-policy"] = [distance("none", staleness=0, seed=seed) for seed in seeds]
    far = [distance("none", staleness=4, seed=seed) for seed in seeds]
    print(f"seeds {seeds}: near {near}, far {far}")
    assert max(map(max, near.values())) < 0.08, (seeds, near)
    assert min(far) > 0.1, (seeds, far)
