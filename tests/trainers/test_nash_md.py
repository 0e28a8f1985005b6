"""Nash-MD's loss is TRL 1.12's: a REINFORCE score around one half, and the KL's gradient by REINFORCE."""

from __future__ import annotations

import torch

from quintain.config import NashMDConfig
from quintain.config.loss import LossOptions
from quintain.trainers.algorithms.nash_md import NashMD
from quintain.trainers.rows import Totals

from .loss_batches import LONGEST, ROWS, flat, make_batch, random_advantages, rows_of

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
