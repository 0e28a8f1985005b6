"""Configuration: every mistake is one clear line with the field's path and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from quintain.config import ExperimentConfig, dump_config, load_config, parse_config
from quintain.config.section import Section
from quintain.failure import QuintainError

BASE = "model: {path: x}\nenvironment: {name: math}\n"


def test_a_minimal_file_is_an_experiment_and_its_dump_reads_back_the_same() -> None:
    config = parse_config(BASE)
    assert parse_config(dump_config(config)) == config
    assert config.trainer.num_generations == 8


def test_overrides_are_yaml_values_at_paths() -> None:
    config = parse_config(BASE, ["trainer.learning_rate=1e-6", "evaluation.split=test", "model.lora.r=4"])
    assert config.trainer.learning_rate == 1e-6
    assert config.evaluation is not None
    assert config.model.lora is not None
    assert config.model.lora.r == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE + "trianer: {}", "trianer: no such field: did you mean 'trainer'?"),
        (
            BASE + "trainer: {learning_rat: 3}",
            "trainer.learning_rat: no such field: did you mean 'learning_rate'?",
        ),
        (BASE + "trainer: {loss_type: gpro}", "trainer.loss_type: expected 'grpo', 'bnpo'"),
        (BASE + "trainer: {loss_type: gpro}", "did you mean 'grpo'?"),
        (
            BASE + "trainer: {algorithm: rloo, gamma: 1}",
            "trainer.gamma: not an option of rloo: gamma is an option of reinforce_plus_plus",
        ),
        (BASE + "trainer: {algorithm: rloo, num_generations: 1}", "greater than or equal to 2, got 1"),
        (BASE + "trainer: {algorithm: rloo, reward_clip_range: [1, 0]}", "expected a low and a higher bound"),
        (BASE + "trainer: {discount: 0.9}", "discount is between turns: set credit: turn"),
        (BASE + "trainer: {credit: turn, reward_weights: {a: 1}}", "credit turn takes the rewards of turns"),
        (BASE + "trainer: {pass_at_k: 8}", "pass_at_k (8) must be above 1 and below num_generations (8)"),
        (BASE + "trainer: {algorithm: gpro}", "trainer.algorithm: no such algorithm: 'gpro': did you mean 'grpo'?"),
        (
            BASE + "trainer: {num_generations: 1}",
            "trainer.num_generations: expected greater than or equal to 2, got 1",
        ),
        (BASE + "rollout: {temperature: hot}", "rollout.temperature: expected a valid number"),
        (BASE + "rollout: {temperature: .nan}", "rollout.temperature"),
        (BASE + "trainer: 3", "trainer: expected a section with fields, got 3"),
        (BASE + "seed: -1", "seed: expected greater than or equal to 0, got -1"),
        (BASE + "model: {path: y}", "'model' is given twice, first in line 1"),
        ("model: {path: x}\nenvironment: {}", "environment: give exactly one of 'name'"),
        ("model: {}\nenvironment: {name: math}", "model.path: required, and not given"),
        ("a: [", "line 1: this is not YAML"),
        ("- 3", "expected sections such as 'model:'"),
        (BASE + "rollout: {max_length: 16, max_completion_length: 16}", "leaves no room for a prompt"),
        (BASE + "trainer: {soft_punish_cache: 300}", "more than rollout.max_completion_length (256)"),
        (BASE + "trainer: {warmup_steps: 200}", "warmup_steps (200) is more than max_steps (100)"),
        (BASE + "trainer: {multi_objective_aggregation: normalize_then_sum}", "needs reward_weights"),
    ],
)
def test_a_mistake_is_one_line_with_the_path_and_the_fix(text: str, says: str) -> None:
    with pytest.raises(QuintainError) as caught:
        parse_config(text, origin="e.yaml")
    message = str(caught.value)
    assert says in message
    assert message.startswith("e.yaml: ")
    assert "\n" not in message


def test_several_mistakes_are_several_lines() -> None:
    with pytest.raises(QuintainError) as caught:
        parse_config(BASE + "trainer: {epsilon: -1, bata: 0}", origin="e.yaml")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["trainer.epsilon", "trainer.bata"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.learning_rate", "expected path=value"),
        ("seed.x=1", "'seed' is a value (3), not a section"),
        ("seed=[", "is not a YAML value"),
    ],
)
def test_a_wrong_override_says_what_was_expected(override: str, says: str) -> None:
    with pytest.raises(QuintainError, match="--set") as caught:
        parse_config(BASE + "seed: 3", [override])
    assert says in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuintainError, match=r"cannot read the experiment .*No such file"):
        load_config(tmp_path / "none.yaml")


def test_the_slash_at_the_end_of_an_address_means_nothing() -> None:
    config = parse_config(
        "model: {path: x}\nenvironment: {url: 'http://h:1/'}\n"
        "rollout: {engine: vllm, dtype: float32, vllm: {urls: ['http://h:2/', 'https://h:3/v//']}}"
    )
    assert config.environment.url == "http://h:1"
    assert config.rollout.vllm is not None
    assert config.rollout.vllm.urls == ["http://h:2", "https://h:3/v"]


def test_a_token_is_never_written_out() -> None:
    config = parse_config("model: {path: x}\nenvironment: {url: 'http://h', token: sesame}")
    assert "sesame" not in dump_config(config)
    assert "sesame" not in repr(config)


class Plain(Section):
    size: int = 1
    """How large."""
    depth: int = 1
    """How deep,
    in metres."""


class Wider(Plain):
    size: int = 2
    width: Annotated[int, Field(description="How wide.")] = 3
    """Not this."""


def test_a_description_is_the_docstring_of_the_nearest_class_that_has_one() -> None:
    def told(section: type[Section]) -> dict[str, str | None]:
        return {name: about.get("description") for name, about in section.model_json_schema()["properties"].items()}

    assert told(Plain) == {"size": "How large.", "depth": "How deep,\nin metres."}
    assert told(Wider) == {"size": "How large.", "depth": "How deep,\nin metres.", "width": "How wide."}


def test_every_field_has_a_description() -> None:
    schema = ExperimentConfig.model_json_schema()
    for name, section in {"ExperimentConfig": schema, **schema["$defs"]}.items():
        for field, about in section["properties"].items():
            assert "description" in about or "$ref" in about or "anyOf" in about, f"{name}.{field}"
