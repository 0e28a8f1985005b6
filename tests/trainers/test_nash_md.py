"""Nash-MD's loss is TRL 1.12's: a REINFORCE score around one half, and the KL's gradient by REINFORCE."""

from __future__ import annotations

import math

import numpy as np
import torch

from quintain.config import NashMDConfig
from quintain.config.loss import LossOptions
from quintain.trainers.algorithms.nash_md import NashMD
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.rows import Totals

from .loss_batches import LONGEST, ROWS, flat, make_batch, random_advantages, rows_of
from .test_update import groups

torch.set_num_threads(1)


def test_value_and_gradient_are_the_published_ones_for_any_cut() -> None:
    """(β·Σ sg[ℓ − ref]·ℓ − (P − 1/2)·Σ ℓ) per row, mean over rows: `_compute_losses` of TRL's NashMDTrainer."""
    nash, totals = NashMD(NashMDConfig(beta=0.3), longest=LONGEST), Totals(rows=ROWS, tokens=1, max_completion_length=7)
    for seed in range(3):
        whole = flat(make_batch(seed), random_advantages(seed), LossOptions())
        assert whole.ref_logp is not None
        expected = torch.zeros((), dtype=torch.float64)
        for row in range(ROWS):
            at = (whole.row == row) & whole.mask
            logp, ref = whole.logp[at], whole.ref_logp[at]
            log_ratio = (logp - ref).detach()
            expected = expected + 0.3 * (log_ratio * logp).sum() - (whole.advantage[at] * logp).sum()
        expected = expected / ROWS
        (wanted,) = torch.autograd.grad(expected, whole.logp)
        for parts in ([whole], [rows_of(whole, [0, 5]), rows_of(whole, [1, 2, 3, 4])]):
            loss = torch.stack([nash.loss("policy", part, totals)[0] for part in parts]).sum()
            (gradient,) = torch.autograd.grad(loss, whole.logp, retain_graph=True)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(gradient, wanted)


def test_from_rewards_to_the_loss_it_is_trls_with_the_chance_of_winning_counted_over_the_group() -> None:
    """TRL's `_compute_losses` on sums over padded completions; its probability is the mean of a judge's verdicts (1,
    1/2 or 0) over what an answer is compared with, here the others of its group that did not fail."""
    nash = NashMD(NashMDConfig(beta=0.3), longest=8)
    for seed in range(3):
        rng, batch = np.random.default_rng(seed), groups(seed, failing=True)
        rows = nash.rows(batch, version=0)
        credited = nash.credit(rows).rows
        probability = {}
        for n, group in enumerate(rows.episodes.group):
            mine = rows.episodes.reward[n, 0]
            others = [
                rows.episodes.reward[m, 0]
                for m, other in enumerate(rows.episodes.group)
                if m != n and other == group and not math.isnan(rows.episodes.reward[m, 0])
            ]
            verdicts = [1.0 if mine > r else 0.5 if mine == r else 0.0 for r in others]
            probability[n] = sum(verdicts) / len(verdicts) if verdicts else 0.5
        lengths = [row.tokens for row in credited]
        logp = torch.tensor(-rng.random((len(lengths), max(lengths))), requires_grad=True)
        ref = torch.tensor(-rng.random(logp.shape))
        mask = torch.arange(logp.shape[1])[None] < torch.tensor(lengths)[:, None]
        score = torch.tensor([probability[row.trajectory] for row in credited]) - 0.5
        log_ratio = (logp.detach() - ref) * mask
        expected = (0.3 * (log_ratio * logp).sum(1) - score * (logp * mask).sum(1)).mean()
        given = LossInputs(
            logp=logp[mask], row=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), rows=len(lengths),
            advantage=torch.tensor(np.concatenate([row.columns["advantage"] for row in credited])).double(),
            mask=torch.ones(sum(lengths), dtype=torch.bool), ref_logp=ref[mask],
        )  # fmt: skip
        loss, _ = nash.loss("policy", given, rows.totals)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
        (a,), (b,) = (torch.autograd.grad(x, logp, retain_graph=True) for x in (loss, expected))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
