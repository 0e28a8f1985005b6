"""The losses of fine-tuning and of process reward models against closed forms: value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from quintain.config.offline import PRMConfig, SFTConfig
from quintain.trainers.algorithms.reward import ProcessRewardModel
from quintain.trainers.algorithms.sft import SFT
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.rows import Totals

TOKENS, WORDS = 12, 7
TOTALS = Totals(rows=3, tokens=TOKENS, units=3, max_completion_length=9)


def inputs(logp: Tensor, **more: Any) -> LossInputs:
    """Tokens of three rows."""
    row = torch.arange(TOKENS) // 4
    mask = torch.ones(TOKENS, dtype=torch.bool)
    return LossInputs(logp=logp, row=row, rows=3, advantage=torch.zeros(TOKENS), mask=mask, **more)


@pytest.mark.parametrize("seed", range(3))
def test_fine_tuning_is_the_cross_entropy_of_all_tokens_and_dft_weighs_each_by_its_own_probability(seed: int) -> None:
    torch.manual_seed(seed)
    logits, said = torch.randn(TOKENS, WORDS, requires_grad=True), torch.randint(WORDS, (TOKENS,))
    logp = logits.log_softmax(-1)[torch.arange(TOKENS), said]
    nll, _ = SFT(SFTConfig(), longest=9).loss("policy", inputs(logp), TOTALS)
    dft, _ = SFT(SFTConfig(loss_type="dft"), longest=9).loss("policy", inputs(logp), TOTALS)
    torch.testing.assert_close(nll, cross_entropy(logits, said))
    p = logp.detach().exp()
    torch.testing.assert_close(dft.detach(), -(p * p.log()).mean())
    (of_nll,) = torch.autograd.grad(nll, logits, retain_graph=True)
    (of_dft,) = torch.autograd.grad(dft, logits)
    away = (logits.softmax(-1) - one_hot(said, WORDS)).detach() / TOKENS
    torch.testing.assert_close(of_nll, away)
    torch.testing.assert_close(of_dft, p[:, None] * away)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_s_loss_is_the_cross_entropy_of_its_two_labels(seed: int) -> None:
    torch.manual_seed(seed)
    logits, right = torch.randn(TOKENS, 2, requires_grad=True), torch.randint(2, (TOKENS,))
    judged = inputs(torch.zeros(TOKENS), value=logits[:, 1] - logits[:, 0], columns={"label": right.float()})
    loss, _ = ProcessRewardModel(PRMConfig(), longest=9).loss("reward", judged, TOTALS)
    theirs = cross_entropy(logits, right)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(theirs, logits))
