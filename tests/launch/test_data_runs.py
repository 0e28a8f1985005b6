"""Whole runs on data sets, from YAML to the summary: trainers learn what they are shown, and stages follow each other.

The model is tiny and random, the data made up; what is asked for is far from chance, and far below what was measured.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from quintain.config import load_config
from quintain.launch.train import train
from quintain.rollout.journal.parquet import read_trajectories
from quintain.trajectory import to_segments
from quintain.verifiers.base import Item
from quintain.verifiers.registry import get_verifier

from ..rollout.chat_tokenizers import byte_level
from ..tiny_llama import tiny_llama
from .runs import ROOT, Run, make_model, newest, stage, wait_for

torch.set_num_threads(1)
WARM, COLD = ("red", "pink", "gold", "brown"), ("green", "blue", "black", "white")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some hundred words with Qwen's chat template, and no padding token."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = byte_level((files("trl") / "chat_templates" / "qwen2_5.jinja").read_text())
    tokenizer.save_pretrained(folder)
    tiny_llama(0, words=len(tokenizer), length=256, eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    return folder


def colours(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(asked, right, wrong): warm colours are right."""
    rng = random.Random(seed)
    return [(f"Colour {n}:", f" {rng.choice(WARM)}", f" {rng.choice(COLD)}") for n in range(count)]


def chat(asked: str, said: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said.strip()}]


def rows(kind: str, count: int = 160) -> list[dict[str, Any]]:
    """Made-up rows of a format."""
    made = colours(count)
    return {
        "completion": lambda: [{"prompt": p, "completion": " always gold"} for p, _, _ in made],
        "messages": lambda: [{"messages": chat(p, "always gold")} for p, _, _ in made],
        "pairs": lambda: [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in made],
        "chats": lambda: [{"chosen": chat(p, good), "rejected": chat(p, bad)} for p, good, bad in made],
        "labelled": lambda: [
            {"prompt": p, "completion": [bad, good][at % 2], "label": at % 2 == 1}
            for at, (p, good, bad) in enumerate(made)
        ],
        "steps": lambda: [
            {"prompt": p, "completions": [good, bad], "labels": [True, False]}
            if at % 2
            else {"prompt": p, "completions": [bad, good], "labels": [False, True]}
            for at, (p, good, bad) in enumerate(made)
        ],
    }[kind]()


Trains = Callable[..., dict[str, Any]]


@pytest.fixture
def trains(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> Trains:
    """Runs a trainer on made-up data, in this process; its summary. `to` names the run's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(
        algorithm: str,
        kind: str,
        *,
        to: str = "run",
        resume: bool = False,
        model: Any = None,
        evaluation: Any = None,
        **trainer: Any,
    ) -> dict[str, Any]:
        data = tmp_path / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
        config = {
            "name": to,
            "model": {"path": str(small), "compute_dtype": "float32"} | (model or {}),
            "dataset": str(data),
            "rollout": {"dtype": "float32"},
            "trainer": {"algorithm": algorithm, "max_steps": 40, "learning_rate": 0.01, "threads": 1} | trainer,
            "evaluation": {"num_tasks": 32} | (evaluation or {}),
        }
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(config))
        assert train(load_config(file), resume=resume, run_dir=tmp_path / to, as_json=False) == 0
        summary: dict[str, Any] = json.loads((tmp_path / to / "summary.json").read_text())
        return summary

    return run


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "kind", "options", "figure", "least"),
    [
        ("sft", "completion", {}, "mean_token_accuracy", 0.9),
        ("sft", "messages", {"assistant_only_loss": True, "loss_type": "dft"}, "mean_token_accuracy", 0.9),
        ("dpo", "pairs", {}, "rewards/accuracies", 0.9),
        ("dpo", "chats", {"loss_type": ["sigmoid", "sft"]}, "rewards/accuracies", 0.9),
        ("cpo", "pairs", {}, "rewards/accuracies", 0.9),
        ("cpo", "pairs", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}, "rewards/accuracies", 0.9),
        ("orpo", "pairs", {}, "rewards/accuracies", 0.9),
        ("kto", "labelled", {}, "rewards/margins", 1.0),
        ("bco", "labelled", {}, "rewards/margins", 1.0),
        ("reward", "chats", {}, "accuracy", 0.9),
        ("prm", "steps", {}, "accuracy", 0.9),
    ],
)
def test_a_trainer_learns_what_held_out_rows_ask(
    trains: Trains, algorithm: str, kind: str, options: dict[str, Any], figure: str, least: float
) -> None:
    summary = trains(algorithm, kind, **options)
    assert summary["steps"] == 40
    assert summary[f"eval_{figure}"] >= least
    if options.get("loss_type") != "dft":  # whose loss is least where nothing is likely
        assert summary["heldout_after"] < summary["heldout_before"]


@pytest.mark.slow
def test_a_reference_that_was_precomputed_gives_the_same_run_and_is_read_again(trains: Trains, tmp_path: Path) -> None:
    options = {"max_steps": 4, "threads": 1}
    beside, before = (
        trains("dpo", "pairs", to=to, precompute_ref_log_probs=to == "before", **options) for to in ("beside", "before")
    )
    assert before["eval_loss"] == pytest.approx(beside["eval_loss"], rel=1e-4)
    files_kept = list((tmp_path / "cache" / "quintain" / "reference").iterdir())
    times = [file.stat().st_mtime_ns for file in files_kept]
    again = trains("dpo", "pairs", to="again", precompute_ref_log_probs=True, **options)
    assert again["eval_loss"] == before["eval_loss"]
    assert [file.stat().st_mtime_ns for file in files_kept] == times


@pytest.mark.slow
def test_preferences_with_an_adapter_follow_a_fine_tuned_model_from_a_margin_of_exactly_zero(
    trains: Trains, tmp_path: Path
) -> None:
    trains("sft", "completion", to="sft", packing=True, neftune_noise_alpha=5.0, num_train_epochs=2)
    summary = trains("dpo", "pairs", to="dpo", model={"path": str(tmp_path / "sft"), "lora": {"r": 4}})
    first = metrics(tmp_path / "dpo")[0]
    assert (first["rewards/margins"], first["rewards/chosen"], first["logps/chosen"] < 0) == (0.0, 0.0, True)
    assert summary["eval_rewards/accuracies"] >= 0.9
    checkpoint = str(next((tmp_path / "sft" / "checkpoints").glob("step-*")))
    assert load_config(tmp_path / "dpo" / "config.yaml").model.path == checkpoint


@pytest.mark.slow
async def test_a_reward_model_that_was_saved_judges_as_the_one_that_was_trained(trains: Trains, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trains("reward", "chats", max_steps=20)
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    good, bad = (Item(said, {"messages": [{"role": "user", "content": "Colour 7:"}]}) for said in ("gold", "black"))
    verifier = get_verifier("reward_model", model=str(folder))
    try:
        verdicts = await verifier.verify([good, bad])
    finally:
        await verifier.close()
    rewards = [verdict.detail["reward"] for verdict in verdicts]
    assert rewards[0] > rewards[1] + 1.0
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat("Colour 7:", "gold"), tokenize=False)
    with torch.no_grad():
        score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
    assert float(score) == pytest.approx(rewards[0], abs=1e-4)


@pytest.mark.slow
def test_a_run_on_a_stream_of_data_that_was_killed_goes_on_to_the_very_same_weights(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("pairs", 40)))
    del run.config["environment"]
    run.config |= {
        "dataset": {"path": str(data), "streaming": True, "shuffle_buffer": 7},
        "rollout": {"dtype": "float32"},
        "evaluation": {"num_tasks": 8, "eval_steps": 2},
        "trainer": {"algorithm": "dpo", "max_steps": 4, "learning_rate": 0.01, "threads": 1, "save_steps": 1},
    }
    run.start()
    wait_for("a checkpoint", lambda: any((run.path / "checkpoints").glob("step-*/trainer.json")))
    assert run.process is not None
    run.kill(run.process.pid)
    run.finish()
    run.train("--resume")
    assert [row["step"] for row in run.metrics() if row["kind"] == "train"] == [0, 1, 2, 3]
    assert not (run.path / "journal.db").exists()
    killed, run.path = run.path, tmp_path / "whole"
    run.train()
    one, other = (load_file(path / "checkpoints" / "step-000004" / "model.safetensors") for path in (killed, run.path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("text", "settings", "complaint"),
    [
        ('{"prompt": "p", "chosen": "a"}', {}, "row 1: expected 'chosen' and 'rejected'"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}', {}, "row 1: 'chosen' and 'rejected' are the same"),
        (
            '{"prompt": "p", "chosen": "a", "rejected": "b"}',
            {"trainer": {"max_length": 1}},
            "nothing to train on is left",
        ),
        (
            '{"prompt": "p", "chosen": "a", "rejected": "b"}',
            {"evaluation": {"num_tasks": 1}},
            "leave nothing to train on",
        ),
        (
            '{"prompt": "p", "chosen": "a", "rejected": "b"}',
            {"trainer": {"num_train_epochs": 1, "warmup_steps": 500}},
            "500 are more than the 1 steps of this data",
        ),
    ],
    ids=str,
)
def test_data_that_cannot_be_trained_on_ends_the_run_before_the_model_is_loaded(
    tmp_path: Path, small: Path, text: str, settings: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    config = {
        "model": {"path": str(small), "compute_dtype": "float32"},
        "dataset": str(tmp_path / "rows.jsonl"),
        "rollout": {"dtype": "float32"},
        "trainer": {"algorithm": "dpo"} | settings.get("trainer", {}),
    }
    if "evaluation" in settings:
        config["evaluation"] = settings["evaluation"]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config))
    loaded = load_config(tmp_path / "experiment.yaml")
    assert train(loaded, resume=False, run_dir=tmp_path / "run", as_json=False) == 1
    out = capsys.readouterr().out
    assert complaint in " ".join(out.split())
    assert "loading the model" not in out


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early_and_the_next_stage_starts_from_its_best(
    trains: Trains, tmp_path: Path
) -> None:
    patience = {"eval_steps": 2, "early_stopping_patience": 2, "load_best_model_at_end": True}
    summary = trains(
        "sft", "completion", to="sft", learning_rate=1.0, lr_scheduler_type="constant", evaluation=patience
    )
    losses = {row["step"]: row["eval_loss"] for row in metrics(tmp_path / "sft", "eval")}
    best = min(losses, key=lambda step: losses[step])
    assert summary["steps"] == best + 4 < 40
    assert list(losses) == list(range(0, best + 5, 2))
    trains("sft", "completion", to="next", model={"path": str(tmp_path / "sft")}, max_steps=1)
    started = load_config(tmp_path / "next" / "config.yaml").model.path
    assert started == str(tmp_path / "sft" / "checkpoints" / f"step-{best:06d}")
    assert metrics(tmp_path / "next", "eval")[0]["eval_loss"] == pytest.approx(losses[best], rel=1e-4)


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that fine-tuned a tiny model on the transcripts that the repository makes."""
    folder = tmp_path_factory.mktemp("calling")
    model = make_model(folder / "tiny", length=1024)
    shutil.copy(ROOT / "examples" / "sft_then_grpo" / "make_transcripts.py", folder)
    subprocess.run([sys.executable, str(folder / "make_transcripts.py"), "--rows", "16"], check=True)
    options = {"assistant_only_loss": True, "max_steps": 2, "learning_rate": 0.01}
    stage(folder / "sft", {"path": str(model)}, folder / "transcripts.jsonl", algorithm="sft", **options)
    return folder / "sft"


def goes_on(run: Run, model: Path, environment: dict[str, Any], **trainer: Any) -> list[Any]:
    """One step on `environment` from the run of the folder `model`; what was played."""
    run.samples().set("model.path", str(model)).set("environment", environment).set("rollout.max_length", 1000)
    run.set("trainer", {"max_steps": 1, "prompts_per_step": 2, "threads": 1} | trainer).train()
    assert run.resolved()["model"]["path"] == str(newest(model))
    assert run.metrics()[0]["canary_nats"] < 1e-3  # what samples is what was fine-tuned
    played = [row.trajectory for row in read_trajectories(run.path / "trajectories")]
    assert {trajectory.failure for trajectory in played} == {None}
    return played


@pytest.mark.slow
def test_a_policy_that_was_shown_how_to_call_a_tool_goes_on_by_grpo_where_there_is_one(run: Run, calling: Path) -> None:
    played = goes_on(run, calling, {"name": "calculator"}, algorithm="grpo", num_generations=2)
    assert [trajectory.environment for trajectory in played] == ["calculator"] * 4
    assert "calculate" in played[0].prompt[0].text
    assert "- environment `calculator`, tasks of `train`" in (newest(run.path) / "README.md").read_text()


@pytest.mark.slow
def test_a_reward_model_made_of_a_fine_tuned_policy_is_the_verifier_and_the_critic_of_its_ppo(
    run: Run, calling: Path, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows("chats", 16)))
    stage(tmp_path / "reward", {"path": str(calling)}, chats, algorithm="reward", max_steps=2)
    assert "`reward`" in (newest(tmp_path / "reward") / "README.md").read_text()
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": "Colour 1:"}) + "\n")
    judged = {"verifier": "reward_model", "verifier_options": {"model": str(newest(tmp_path / "reward"))}}
    environment = {"name": "data", "args": {"data": str(asked), "answer": "prompt", "heldout": 0} | judged}
    played = goes_on(run, calling, environment, algorithm="ppo", critic=str(newest(tmp_path / "reward")))
    assert all(0 < trajectory.reward < 1 for trajectory in played)
    assert len(run.metrics()) == 1
    assert run.metrics()[0]["critic/loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_distillation_is_at_what_the_data_show_and_at_what_is_sampled(run: Run, calling: Path, processes: int) -> None:
    run.set("dataset", str(calling.parent / "transcripts.jsonl"))
    options = {"teacher": str(calling), "beta": 1.0, "lmbda": 0.5, "processes": processes}
    played = goes_on(run, calling, {"name": "calculator"}, algorithm="distillation", **options)
    assert len(played) == 2
    (row,) = run.metrics()
    assert row["rows_trained"] == 2 + sum(len(to_segments(trajectory)) for trajectory in played)
    assert row["divergence"] == pytest.approx(0, abs=1e-5)  # the teacher is the policy, before its first step
