"""`dtype: auto`: what is chosen, from what, and that it is chosen once."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.config import ExperimentConfig, dump_config, load_config, parse_config
from quintain.failure import QuintainError
from quintain.launch.run_folder import new_run, resumed_run
from quintain.rollout.engines.choose import make_engine
from quintain.rollout.engines.dtypes import DTYPES, WORTH, product_seconds, settled, torch_dtype

TYPES = st.sampled_from(["auto", *DTYPES])
SECONDS = st.fixed_dictionaries({name: st.floats(1e-6, 10.0) for name in DTYPES})


def experiment(*given: str) -> ExperimentConfig:
    return parse_config("{model: {path: m}, environment: {name: math}}", given)


def types(config: ExperimentConfig) -> tuple[str, str]:
    return config.model.compute_dtype, config.rollout.dtype


def never() -> dict[str, float]:
    raise AssertionError("measured, though there was nothing to choose")


def test_both_types_are_left_to_the_machine_by_default() -> None:
    assert types(experiment()) == ("auto", "auto")


@given(TYPES, TYPES, SECONDS)
def test_bfloat16_replaces_auto_exactly_where_it_was_measured_to_be_faster(
    compute: str, dtype: str, seconds: dict[str, float]
) -> None:
    config = experiment(f"model.compute_dtype={compute}", f"rollout.dtype={dtype}")
    chosen, line = settled(config, gpu=False, measure=lambda: seconds)
    faster = "bfloat16" if seconds["float32"] / seconds["bfloat16"] >= WORTH else "float32"
    assert types(chosen) == tuple(faster if given == "auto" else given for given in (compute, dtype))
    assert bool(line) == ("auto" in (compute, dtype))
    assert settled(chosen, gpu=False, measure=never) == (chosen, "")
    assert parse_config(dump_config(chosen)) == chosen, "what was chosen can be read back"


def test_a_gpu_computes_in_bfloat16_unmeasured() -> None:
    chosen, line = settled(experiment(), gpu=True, measure=never)
    assert types(chosen) == ("bfloat16", "bfloat16")
    assert line == "model.compute_dtype and rollout.dtype: bfloat16, since there is a GPU"


def test_an_engine_beside_the_gpu_is_measured_on_the_cpu() -> None:
    seconds = {"float32": 1.0, "bfloat16": 2.0}
    chosen, line = settled(experiment("rollout.device=cpu"), gpu=True, measure=lambda: seconds)
    assert types(chosen) == ("bfloat16", "float32")
    assert line == (
        "model.compute_dtype: bfloat16, since there is a GPU;"
        " rollout.dtype: float32, 2.0 times as fast as bfloat16 on this machine"
    )


def test_weights_in_bfloat16_are_computed_with_in_bfloat16() -> None:
    seconds = {"float32": 1.0, "bfloat16": 6.0}
    chosen, _ = settled(experiment("model.dtype=bfloat16"), gpu=False, measure=lambda: seconds)
    assert types(chosen) == ("bfloat16", "float32")
    assert parse_config(dump_config(chosen)) == chosen


def test_the_choice_and_its_reason_are_one_line() -> None:
    said = settled(experiment(), gpu=False, measure=lambda: {"float32": 1.0, "bfloat16": 6.1})[1]
    assert said == "model.compute_dtype and rollout.dtype: float32, 6.1 times as fast as bfloat16 on this machine"


def test_this_machine_measures_both_types_and_says_what_it_takes() -> None:
    seconds = product_seconds()
    assert set(seconds) == set(DTYPES)
    assert all(0 < taken < math.inf for taken in seconds.values())
    said = settled(experiment(), gpu=False)[1]
    assert re.fullmatch(r"model.compute_dtype and rollout.dtype: (float32|bfloat16), \d.* on this machine", said)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_a_run_goes_on_in_the_types_it_began_with_on_whatever_machine(tmp_path: Path, kept: str) -> None:
    began, _ = settled(
        experiment(), gpu=False, measure=lambda: {"float32": 1.0, "bfloat16": 0.1 if kept == "bfloat16" else 9.0}
    )
    new_run(began, tmp_path / "run")
    run, config = resumed_run(experiment(), tmp_path / "run")
    assert types(config) == types(load_config(run.config)) == (kept, kept)


@pytest.mark.parametrize("name", ["auto", "float16"])
def test_what_is_no_type_is_refused_where_it_would_be_computed_with(name: str) -> None:
    with pytest.raises(QuintainError, match=r"^rollout.dtype: expected float32 or bfloat16, got '"):
        torch_dtype(name, "rollout.dtype")


def test_an_engine_is_not_made_before_the_choice() -> None:
    with pytest.raises(QuintainError, match=r"rollout\.dtype is still 'auto'"):
        make_engine(experiment(), lambda: 0)


def test_servers_elsewhere_are_not_measured_here() -> None:
    servers: dict[str, Any] = {"engine": "vllm", "vllm": {"urls": ["http://gpu:8000"]}}
    with pytest.raises(QuintainError, match=r"dtype: auto measures this machine, not the servers at vllm\.urls"):
        experiment(f"rollout={servers}")
    assert experiment(f"rollout={servers | {'dtype': 'bfloat16'}}").rollout.dtype == "bfloat16"
