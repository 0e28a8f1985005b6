"""The card beside a model that was trained, and its way to a hub."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from rich.console import Console

from quintain.config import parse_config
from quintain.failure import QuintainError
from quintain.launch.display import Display
from quintain.launch.model_card import hub_repository, model_card, push, write_card
from quintain.launch.report import MetricsLog
from quintain.launch.run_folder import RunFolder
from quintain.launch.session import TrainingRun
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import Evaluation
from quintain.trainers.loop import Result

from .fake_hub import FakeHub, fake_hub

SUMMARY = {"steps": 40, "train_wall_s": 12.3}
SFT = """
name: warm
seed: 7
model: {path: some/model}
dataset: [{path: some/data, weight: 1}, {run: runs/first, where: {verdict: correct}, weight: 3}]
trainer: {algorithm: sft, max_steps: 40}
"""
ONLINE = """
model: {path: .}
environment: {url: "http://localhost:1", token: sesame, title: shop, args: {user_model: {key: sesame}}}
trainer: {algorithm: distillation, teacher_url: "http://localhost:2", teacher_token: sesame}
"""


def experiment(card: str) -> Any:
    return yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])


def test_a_card_says_what_was_trained_on_what_with_which_figures_and_versions() -> None:
    config = parse_config(SFT)
    evaluations = [{"step": step, "heldout": loss, "eval_accuracy": None} for step, loss in ((0, 2.5), (40, 0.25))]
    card = model_card(config, SUMMARY, evaluations, curve=True)
    read = ModelCard(card)
    assert (read.data.base_model, read.data.datasets, read.data.pipeline_tag) == (
        "some/model",
        ["some/data"],
        "text-generation",
    )
    assert read.data.tags == ["quintain", "sft"]
    assert "- `runs/first`, verdict correct, weight 3" in card
    assert "| step | heldout | eval_accuracy |\n| --- | --- | --- |\n| 0 | 2.5 | – |\n| 40 | 0.25 | – |" in card
    assert "40 steps in 12 s of training, seed 7." in card
    assert "![The curve of the run](curve.png)" in card
    assert "\n- torch 2." in card
    assert experiment(card)["trainer"] == {"algorithm": "sft", "max_steps": 40}
    assert parse_config(yaml.safe_dump(experiment(card))) == config


def test_a_card_of_a_reward_model_says_what_loads_it() -> None:
    text = "model: {path: .}\ndataset: a.jsonl\ntrainer: {algorithm: reward, push_to_hub: true}"
    card = model_card(parse_config(text), SUMMARY, [], curve=False)
    read = ModelCard(card)
    assert (read.data.pipeline_tag, read.data.base_model) == ("text-classification", None)
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "curve" not in card


def test_no_token_and_no_argument_of_an_environment_stands_in_a_card() -> None:
    card = model_card(parse_config(ONLINE), SUMMARY, [], curve=False)
    assert "- environment `shop`, tasks of `train`, weight 1" in card
    assert "sesame" not in card


def made(folder: Path, *steps: int, kept: int | None = None) -> RunFolder:
    """A run with a checkpoint of each of `steps`."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    for step in steps:
        checkpoint = run.checkpoints / f"step-{step:06d}"
        (checkpoint / "critic").mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "state.pt").write_bytes(b"much")
        (checkpoint / "value_head.safetensors").write_bytes(b"a critic's")
        (checkpoint / "critic" / "config.json").write_text("{}")
        (checkpoint / "trainer.json").write_text(json.dumps({"kept": kept}))
    told = {"heldout": 0.5, "verified": 2, "failed": 0, "elapsed_s": 1.0}
    MetricsLog(run.metrics).write("eval", 0, told)
    run.curve.write_bytes(b"a picture")
    return run


def test_the_card_is_beside_the_weights_that_the_next_stage_starts_from(tmp_path: Path) -> None:
    run = made(tmp_path / "best", 2, 4, 6, kept=4)
    assert write_card(parse_config(SFT), run, SUMMARY) == run.checkpoints / "step-000004"
    assert [path.parent.name for path in run.path.rglob("README.md")] == ["step-000004"]
    assert (run.checkpoints / "step-000004" / "curve.png").read_bytes() == b"a picture"
    assert write_card(parse_config(SFT), made(tmp_path / "newest", 2, 4), SUMMARY).name == "step-000004"  # type: ignore[union-attr]
    assert write_card(parse_config(SFT), made(tmp_path / "none"), SUMMARY) is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(token="hf_mine") as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield fake


def pushing(**options: Any) -> Any:
    return parse_config(SFT, [f"trainer.{name}={json.dumps(value)}" for name, value in options.items()])


def test_a_fake_hub_over_http_is_given_the_model_and_its_card_and_nothing_that_only_a_resumed_run_needs(
    hub: FakeHub, tmp_path: Path
) -> None:
    config = pushing(push_to_hub=True, hub_private_repo=True)
    run = made(tmp_path, 4)
    folder = write_card(config, run, SUMMARY)
    assert folder is not None
    assert [hub_repository(config) for _ in range(2)] == ["me/warm"] * 2  # before the run, and after it
    assert push(folder, "me/warm") == f"{hub.url}/me/warm/commit/1"
    assert set(hub.files["me/warm"]) == {"README.md", "config.json", "curve.png"}
    assert hub.files["me/warm"]["README.md"] == (folder / "README.md").read_bytes()
    assert hub.made[0]["visibility"] == "private"
    assert hub_repository(pushing(push_to_hub=True, hub_model_id="us/other")) == "us/other"
    assert hub_repository(parse_config(SFT)) is None


def test_a_run_that_ends_pushes_the_checkpoint_that_it_leaves_and_says_where_it_is(
    hub: FakeHub, tmp_path: Path
) -> None:
    shown = io.StringIO()
    config = pushing(push_to_hub=True)
    assert hub_repository(config) == "me/warm"
    run = TrainingRun(
        config, made(tmp_path, 4), Display(Console(file=shown, width=80), steps=4), lambda: None, [2], 0.0
    )
    run._conclude(Result(Progress(4, 4, 8, 3.0, 0.5), None, Evaluation(4, 0.25, 2, 0, 1.0, (), {"loss": 0.25})))
    assert "4 steps in 3 s of training" in hub.files["me/warm"]["README.md"].decode()
    assert f"the model is on the hub: {hub.url}/me/warm/commit/1" in shown.getvalue()


def test_a_hub_that_lets_nobody_in_or_takes_nothing_is_told_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuses = True
    with pytest.raises(QuintainError, match=r"trained and in .*step-000004, but me/warm on the hub did not take") as no:
        push(made(tmp_path, 4).checkpoints / "step-000004", "me/warm")
    assert "\n" not in str(no.value)
    with pytest.raises(QuintainError, match="hub_model_id is 'me/x', but nothing is pushed: set push_to_hub"):
        pushing(hub_model_id="me/x")
    monkeypatch.setenv("HF_TOKEN", "hf_theirs")
    with pytest.raises(QuintainError, match=r"cannot make 'warm' on the hub: .* log in with 'hf auth login'") as error:
        hub_repository(pushing(push_to_hub=True))
    assert "\n" not in str(error.value)
