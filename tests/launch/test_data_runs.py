"""Whole runs on data sets, from YAML to the summary: trainers learn what they are shown, and stages follow each other.

The model is tiny and random, the data made up; what is asked for is far from chance, and far below what was measured.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quintain.config import load_config
from quintain.launch.train import train

from ..rollout.chat_tokenizers import byte_level
from ..tiny_llama import tiny_llama

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
        algorithm: str, kind: str, *, to: str = "run", resume: bool = False, model: Any = None, **trainer: Any
    ) -> dict[str, Any]:
        data = tmp_path / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
        config = {
            "model": {"path": str(small), "compute_dtype": "float32"} | (model or {}),
            "dataset": str(data),
            "rollout": {"dtype": "float32"},
            "trainer": {"algorithm": algorithm, "max_steps": 40, "learning_rate": 0.01, "threads": 1} | trainer,
            "evaluation": {"num_tasks": 32},
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
