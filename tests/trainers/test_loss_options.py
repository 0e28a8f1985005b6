"""What a policy loss refuses, what it warns about, and whose names and defaults it has."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import yaml

from quintain.config import parse_config
from quintain.config.loss import LossOptions, LossType
from quintain.failure import QuintainError
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.policy import LOSSES, policy_loss
from quintain.trainers.rows import Totals

from .trl_oracle import DEFAULTS

COVARIANCE = {"covariance", "covariance_ratio", "covariance_bounds", "covariance_kl_coef"}
OURS_ONLY = {"off_policy_correction", "dppo_threshold", "entropy_target", "env_token_loss_coef", *COVARIANCE}
RENAMED = {
    "importance_sampling_clip_max": "vllm_importance_sampling_clip_max",
    "importance_sampling_clip_min": "vllm_importance_sampling_clip_min",
}


def inputs(**other: Any) -> LossInputs:
    values: dict[str, Any] = {
        "logp": torch.zeros(3),
        "row": torch.tensor([0, 0, 1]),
        "rows": 2,
        "advantage": torch.ones(3),
        "mask": torch.ones(3, dtype=torch.bool),
    }
    return LossInputs(**(values | other))


def test_names_and_defaults_are_those_of_trl() -> None:
    for name, field in LossOptions.model_fields.items():
        if name not in OURS_ONLY:
            assert field.default == DEFAULTS[RENAMED.get(name, name)], name


def test_every_loss_type_has_a_core_and_a_reduction() -> None:
    assert set(LOSSES) == set(get_args(LossType))


def test_options_can_be_checked_without_importing_torch() -> None:
    code = "import sys; import quintain.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss_type": "ppo"}, "trainer.loss_type: expected 'grpo', 'bnpo'"),
        (
            {"importance_sampling_level": "turn"},
            "trainer.importance_sampling_level: expected 'token' or 'sequence'",
        ),
        ({"off_policy_correction": "seq_mask"}, "trainer.off_policy_correction: expected 'none', 'tis'"),
        ({"epsilon": -0.1}, "trainer.epsilon: expected greater than or equal to 0"),
        ({"epsilon": float("nan")}, "trainer.epsilon: expected a finite number"),
        ({"delta": 0.0}, "trainer.delta: expected greater than 0"),
        ({"beta": float("inf")}, "trainer.beta: expected a finite number"),
        ({"top_entropy_quantile": 1.2}, "trainer.top_entropy_quantile: expected less than or equal to 1"),
        ({"vespo_lambda_pos": -1.0}, "trainer.vespo_lambda_pos: expected greater than 0"),
        ({"importance_sampling_clip_min": 3.0}, "importance_sampling_clip_min (3.0) must be below"),
        ({"off_policy_correction": "tis", "importance_sampling_clip_max": None}, "tis needs a bound"),
        ({"loss_type": "vespo", "off_policy_correction": "sequence_mask"}, "takes no separate factor"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    fields = "\n".join(f"  {name}: {yaml.safe_dump(value).split(chr(10))[0]}" for name, value in wrong.items())
    with pytest.raises(QuintainError) as caught:
        parse_config(f"model: {{path: x}}\nenvironment: {{name: math}}\ntrainer:\n{fields}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("doubtful", "field"),
    [
        ({"loss_type": "cispo"}, "epsilon_high"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high"),
        ({"delta": 1.1}, "delta"),
        ({"loss_type": "luspo"}, "importance_sampling_level"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "importance_sampling_level"),
        ({"loss_type": "dapo", "importance_sampling_level": "sequence"}, "importance_sampling_level"),
    ],
)
def test_options_that_are_rarely_meant_give_one_warning(doubtful: dict[str, Any], field: str) -> None:
    (warning,) = LossOptions(**doubtful).warnings()
    assert warning.startswith(f"{field}: ")


@pytest.mark.parametrize(
    "usual",
    [
        {},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"delta": 4.0},
    ],
)
def test_published_settings_give_no_warning(usual: dict[str, Any]) -> None:
    assert LossOptions(**usual).warnings() == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logp": torch.zeros(3, 1)}, "logp: expected a flat tensor"),
        ({"row": torch.tensor([0, 1])}, "row: expected the shape of logp"),
        ({"ref_logp": torch.zeros(4)}, "ref_logp: expected the shape of logp"),
        ({"advantage": torch.ones(2)}, "advantage: expected the shape of logp"),
        ({"mask": torch.ones(3)}, "mask: expected dtype bool"),
        ({"row": torch.zeros(3)}, "row: expected dtype int64"),
    ],
)
def test_tensors_of_the_wrong_shape_or_type_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inputs(**wrong)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (LossOptions(beta=0.1), "ref_logp"),
        (LossOptions(off_policy_correction="tis"), "sampler_logp"),
        (LossOptions(top_entropy_quantile=0.5), "entropy"),
    ],
)
def test_an_option_without_the_tensor_it_needs_says_which(options: LossOptions, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"^{missing}: expected"):
        policy_loss(inputs(), options)


def test_the_entropy_mask_needs_the_threshold_of_the_global_batch() -> None:
    with pytest.raises(ValueError, match=r"^entropy_threshold: expected"):
        policy_loss(inputs(entropy=torch.ones(3)), LossOptions(top_entropy_quantile=0.5))


def test_totals_that_are_no_counts_are_refused() -> None:
    good = Totals(rows=0, tokens=0, max_completion_length=1)
    with pytest.raises(ValueError, match="totals: expected"):
        replace(good, max_completion_length=0)
