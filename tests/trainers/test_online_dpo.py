"""Online DPO: which pairs come out of a group, and a loss that is TRL's on the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from quintain.config import OnlineDPOConfig
from quintain.trainers.algorithms.online_dpo import OnlineDPO
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.rows import BatchEpisodes, Totals

from .test_update import groups

torch.set_num_threads(1)


def pairs(reward: Sequence[float], group: Sequence[int], **options: Any) -> list[tuple[int, int]]:
    """NaN is a failure."""
    values = np.array(reward)
    episodes = BatchEpisodes(values[:, None], (), np.array(group), np.isnan(values))
    return list(OnlineDPO(OnlineDPOConfig(**options), longest=8).pairs(values, episodes))


def test_the_best_of_a_group_is_paired_with_its_worst_and_a_failure_with_nobody() -> None:
    nan = float("nan")
    assert pairs([0.1, 0.9, nan, 0.5, 1.0, 1.0], [0, 0, 0, 0, 1, 1]) == [(1, 0)]
    assert pairs([nan, nan, 1.0, nan], [0, 0, 1, 1]) == []


def test_all_pairs_are_those_further_apart_than_the_margin() -> None:
    assert pairs([0.0, 1.0, 0.4], [0, 0, 0], pairs="all") == [(1, 2), (1, 0), (2, 0)]
    assert pairs([0.0, 1.0, 0.4], [0, 0, 0], pairs="all", pair_margin=0.5) == [(1, 2), (1, 0)]
    assert pairs([0.0, 1.0, 0.4], [0, 0, 0], pair_margin=1.0) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=10), st.sampled_from(["best_worst", "all"]))
def test_the_chosen_one_is_better_and_of_the_same_group(members: list[tuple[int, int]], how: str) -> None:
    reward, group = [float(r) for _, r in members], [g for g, _ in members]
    for chosen, rejected in pairs(reward, group, pairs=how) if members else ():
        assert group[chosen] == group[rejected]
        assert reward[chosen] > reward[rejected]


def test_ties_are_counted_and_pairs_are_units_with_all_rows_of_both_sides() -> None:
    rows = OnlineDPO(OnlineDPOConfig(pair_margin=100.0), longest=8).rows(groups(1), version=0)
    assert rows.rows == ()
    assert (rows.metrics["pairs"], rows.metrics["frac_groups_tied"]) == (0, 1)
    found = OnlineDPO(OnlineDPOConfig(pairs="all"), longest=8).rows(groups(1), version=0)
    assert found.totals.units == found.metrics["pairs"] == 3 * 6
    assert len(found.rows) == 2 * 18
    assert found.totals.tokens == sum(row.tokens for row in found.rows if row.columns["chosen"][0])


def paired(ref: torch.Tensor | None = None) -> tuple[LossInputs, Totals]:
    """Two pairs of five rows: the first one's chosen side has two, the second one's has one."""
    g = torch.Generator().manual_seed(0)
    logp, drawn = (torch.randn(9, generator=g, dtype=torch.float64) for _ in range(2))
    inputs = LossInputs(
        logp=logp.requires_grad_(), row=torch.tensor([0, 0, 1, 2, 2, 3, 3, 4, 4]), rows=5,
        advantage=torch.zeros(9), mask=torch.ones(9, dtype=torch.bool), ref_logp=drawn if ref is None else ref,
        unit=torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1]), units=2,
        columns={"chosen": torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 1, 1])},
    )  # fmt: skip
    return inputs, Totals(rows=5, tokens=5, units=2, max_completion_length=9)


def test_a_side_of_several_rows_counts_as_one_and_the_loss_is_that_of_the_summed_log_ratios() -> None:
    """As TRL's OnlineDPOTrainer: −log σ(β((Σℓ − Σref of the chosen) − (the same of the rejected)))."""
    inputs, totals = paired()
    assert inputs.ref_logp is not None
    assert inputs.unit is not None
    loss, _ = OnlineDPO(OnlineDPOConfig(beta=0.3), longest=9).loss("policy", inputs, totals)
    sign = torch.where(inputs.columns["chosen"] == 1, 1.0, -1.0).double()
    margins = torch.stack([((inputs.logp - inputs.ref_logp) * sign)[inputs.unit == u].sum() for u in range(2)])
    expected = -logsigmoid(0.3 * margins).mean()
    torch.testing.assert_close(loss, expected)
    (a,), (b,) = (torch.autograd.grad(x, inputs.logp) for x in (loss, expected))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("moved", [False, True])
def test_xpo_adds_how_likely_the_policy_says_what_the_reference_says(moved: bool) -> None:
    """α·Σℓ of what the reference sampled, as in TRL's XPOTrainer: where the policy is the reference, that is both sides
    of a pair; where it has moved, they count by how much likelier the reference was to say them, at most once."""
    given, totals = paired()
    inputs, totals = (given, totals) if moved else paired(given.logp.detach())
    assert inputs.ref_logp is not None
    plain, xpo = (OnlineDPO(OnlineDPOConfig(xpo_alpha=alpha), longest=9) for alpha in (0.0, 0.2))
    expected, _ = plain.loss("policy", inputs, totals)
    for side in ([0, 1, 2], [3, 4], [5, 6], [7, 8]):
        logp = inputs.logp[side].sum()
        weight = min(1.0, math.exp(float((inputs.ref_logp[side].sum() - logp).detach())))
        assert moved or weight == 1
        expected = expected + 0.2 * weight * logp / 4
    loss, metrics = xpo.loss("policy", inputs, totals)
    torch.testing.assert_close(loss, expected)
    (a,), (b,) = (torch.autograd.grad(x, inputs.logp) for x in (loss, expected))
    torch.testing.assert_close(a, b)
    assert metrics["loss/xpo"].count == 2


def test_an_option_that_only_pairs_have_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="loss_weights has 1 entries for 2"):
        OnlineDPOConfig(loss_type=["ipo", "sft"], loss_weights=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="aot sorts the pairs of a data set's batch"):
        OnlineDPOConfig(loss_type=["sigmoid", "aot"])
