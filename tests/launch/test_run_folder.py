"""The folder of a run, and with what it may be resumed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintain.config import ExperimentConfig, load_config, parse_config
from quintain.config.section import Section, forbidden_changes
from quintain.failure import QuintainError
from quintain.launch.run_folder import from_another_run, new_run, resumed_run

EXPERIMENT = """
model: {path: m, compute_dtype: float32, lora: {r: 4}}
environment: {url: "http://a:1", args: {low: 1, high: 30}}
rollout: {engine: vllm, dtype: float32}
trainer: {lr_scheduler_type: constant, max_steps: 4}
evaluation: {num_tasks: 10}
"""


def experiment(*given: str) -> ExperimentConfig:
    return parse_config(EXPERIMENT, given)


def options(section: Section, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every option below `section`, and whether its class says that it may change."""
    for name, field in type(section).model_fields.items():
        extra, value = field.json_schema_extra, getattr(section, name)
        marked = isinstance(extra, dict) and bool(extra.get("may_change_on_resume"))
        if isinstance(value, Section) and not marked:
            yield from options(value, (*at, name))
        else:
            yield (*at, name), marked


def changed(section: Section, path: tuple[str, ...], value: Any) -> Section:
    name, *rest = path
    inner = changed(getattr(section, name), tuple(rest), value) if rest else value
    return section.model_copy(update={name: inner})


def free() -> set[str]:
    return {".".join(path) for path, marked in options(experiment()) if marked}


@pytest.mark.parametrize(("path", "may_change"), list(options(experiment())), ids=lambda value: str(value))
def test_an_option_makes_another_experiment_exactly_where_it_does_not_say_that_it_may_change(
    path: tuple[str, ...], may_change: bool
) -> None:
    other = changed(experiment(), path, "something else")
    found = [change.path for change in forbidden_changes(experiment(), other)]
    assert found == ([] if may_change else [".".join(path)])


def test_what_is_learned_may_not_change_and_where_it_runs_may() -> None:
    assert {
        "environment.url", "environment.workers", "environment.step_timeout_s", "rollout.restarts", "rollout.threads",
        "rollout.max_concurrency", "rollout.sample_timeout_s", "rollout.vllm.urls", "trainer.threads", "evaluation",
    } <= free()  # fmt: skip
    assert not free() & {
        "seed", "model.path", "model.dtype", "model.compute_dtype", "environment.args", "environment.split",
        "rollout.dtype", "rollout.temperature", "rollout.max_staleness", "trainer.learning_rate", "trainer.beta",
        "trainer.lr_scheduler_type", "trainer.prompts_per_step", "trainer.num_generations",
    }  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        ["environment.url=http://b:2", "environment.workers=3", "environment.step_timeout_s=9"],
        ["rollout.vllm.urls=[http://c:3]", "rollout.restarts=9", "rollout.threads=3", "rollout.max_concurrency=7"],
        ["trainer.max_steps=8", "trainer.save_steps=2", "evaluation=null", "name=other"],
    ],
    ids=str,
)
def test_a_run_goes_on_elsewhere_and_keeps_what_it_goes_on_with(tmp_path: Path, given: list[str]) -> None:
    new_run(experiment(), tmp_path / "run")
    run, config = resumed_run(experiment(*given), tmp_path / "run")
    assert load_config(run.config) == config == experiment(*given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("trainer.num_generations=4", "trainer.num_generations was 8 and is 4 now: keep it"),
        ("environment.args={low: 1, high: 9}", "environment.args.high was 30 and is 9 now: keep it"),
        ("model.lora=null", 'model.lora was {"path": null, "r": 4, '),
        ("rollout.vllm.kv=keep", 'rollout.vllm.kv was "recompute" and is "keep" now: keep it'),
        (
            "environment={name: math}",
            'environment.name was null and is "math" now; environment.args.low was 1 and is null',
        ),
        ("rollout.dtype=bfloat16", 'rollout.dtype was "float32" and is "bfloat16" now'),
    ],
)
def test_another_experiment_is_refused_with_the_field_and_both_values(tmp_path: Path, given: str, says: str) -> None:
    run = new_run(experiment(), tmp_path / "run")
    before = run.config.read_text()
    with pytest.raises(QuintainError) as refused:
        resumed_run(experiment(given), tmp_path / "run")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert run.config.read_text() == before


@pytest.mark.parametrize(
    ("field", "algorithm"),
    [("model.path", "grpo"), ("trainer.teacher", "distillation"), ("trainer.critic", "ppo")],
    ids=str,
)
def test_a_model_may_be_that_of_another_run_once_it_has_a_checkpoint(
    tmp_path: Path, field: str, algorithm: str
) -> None:
    run = new_run(experiment(), tmp_path / "run")
    config = parse_config(EXPERIMENT, [f"trainer.algorithm={algorithm}", f"{field}={run.path}"])
    with pytest.raises(QuintainError, match=rf"^{field}: the run .*run has no checkpoint yet: train it first$"):
        from_another_run(config)
    for step, kept in ((2, None), (4, 2)):
        folder = run.checkpoints / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "trainer.json").write_text(json.dumps({"kept": kept}))
        section, option = field.split(".")
        assert getattr(getattr(from_another_run(config), section), option) == str(run.checkpoints / "step-000002")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 8])
def test_a_rate_that_falls_to_the_last_step_never_jumps(tmp_path: Path, schedule: str, steps: int) -> None:
    given = f"trainer.lr_scheduler_type={schedule}"
    new_run(experiment(given), tmp_path / "run")
    resumed_run(experiment(given), tmp_path / "run")
    said = rf"trainer.max_steps was 4 and is {steps} now \(the {schedule} learning rate .* a checkpoint as model.path\)"
    with pytest.raises(QuintainError, match=said):
        resumed_run(experiment(given, f"trainer.max_steps={steps}"), tmp_path / "run")


def test_what_a_run_chose_for_itself_holds_where_it_is_left_open_again(tmp_path: Path) -> None:
    run = new_run(experiment(), tmp_path / "run")
    chosen = {"tool_calls": "hermes", "thinking": True, "date": datetime.date(2026, 1, 31), "stop_ids": [2]}
    first = experiment()
    run.keep(first.model_copy(update={"rollout": first.rollout.model_copy(update=chosen)}))
    _, config = resumed_run(experiment(), tmp_path / "run")
    assert {name: getattr(config.rollout, name) for name in chosen} == chosen
    with pytest.raises(QuintainError, match=r"rollout\.tool_calls was .hermes. and is .kimi. now"):
        resumed_run(experiment("rollout.tool_calls=kimi"), tmp_path / "run")


def test_the_schema_says_which_options_may_change() -> None:
    marked = {
        f"{name}.{option}"
        for name, section in ExperimentConfig.model_json_schema()["$defs"].items()
        for option, about in section["properties"].items()
        if about.get("may_change_on_resume")
    }
    assert {"GRPOConfig.threads", "VLLMConfig.urls", "EnvironmentConfig.url"} <= marked
    assert "TrainerConfig.learning_rate" not in marked


def test_a_folder_in_which_no_run_has_begun_is_taken_over(tmp_path: Path) -> None:
    run = new_run(experiment(), tmp_path)
    run.logs.mkdir()
    (run.logs / "environment.log").write_text("it did not come up")
    assert not run.begun
    new_run(experiment("seed=1"), tmp_path)
    assert yaml.safe_load(run.config.read_text())["seed"] == 1
    (tmp_path / "journal.db").touch()
    with pytest.raises(QuintainError, match="exists: give another --run-dir"):
        new_run(experiment(), tmp_path)
