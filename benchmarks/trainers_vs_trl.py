"""Seconds and memory of a training step on data: SFT, DPO and reward models, here and in TRL 1.16's trainers.

SmolLM2-135M-Instruct, float32 or bfloat16 (whichever is faster on this machine, for both), all threads, the same
token ids in the same batches, AdamW at the same constant rate, no gradient checkpointing. Each side is a process of its
own, the sides take turns; a first step warms up and is not counted. Losses are compared step by step.

    python benchmarks/trainers_vs_trl.py [--steps 3] [--rounds 2] [--only sft,dpo_256,dpo_64,reward,sft_words]

`sft_words` has SmolLM2's shape with 8 layers and 151,936 words. The last line is JSON: ratios `<stage>_time` and
`<stage>_memory` (quintain / TRL), the largest difference of a loss is in the detail.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from _side import ROOT, report

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
RATE, WORDS = 1e-5, 49_000
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"trainer": "sft", "rows": 8, "prompt": (32, 128), "answers": (64, 384)},
    "dpo_256": {"trainer": "dpo", "rows": 4, "prompt": (256, 256), "answers": (256, 256)},
    "dpo_64": {"trainer": "dpo", "rows": 4, "prompt": (256, 256), "answers": (64, 64)},
    "reward": {"trainer": "reward", "rows": 4, "prompt": (128, 256), "answers": (64, 256)},
    "sft_words": {"trainer": "sft", "rows": 8, "prompt": (32, 128), "answers": (64, 384)},
}
Row = tuple[list[int], list[list[int]]]


def rows(stage: str, count: int) -> list[Row]:
    """(prompt, its one or two answers) of random words."""
    about, rng = STAGES[stage], np.random.default_rng(0)

    def ids(between: tuple[int, int]) -> list[int]:
        found: list[int] = rng.integers(10, WORDS, int(rng.integers(between[0], between[1] + 1))).tolist()
        return found

    answers = 1 if about["trainer"] == "sft" else 2
    return [(ids(about["prompt"]), [ids(about["answers"]) for _ in range(answers)]) for _ in range(count)]


def model_of(stage: str, folder: Path, *, small: bool) -> Path:
    """The model's folder, made where it is not SmolLM2 itself."""
    if stage != "sft_words" and not small:
        return MODEL
    shape = {"hidden_size": 72, "intermediate_size": 64, "num_hidden_layers": 2} if small else {"num_hidden_layers": 8}
    words = {"vocab_size": 151_936} if stage == "sft_words" else {}
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(MODEL, **shape, **words)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def quintain(stage: str, steps: int, model: Path, dtype: str, folder: Path) -> tuple[list[float], list[float]]:
    """(seconds, losses) of the steps of `Learner.update`."""
    from quintain.codec import as_ints
    from quintain.config import parse_config
    from quintain.trainers.algorithms import algorithm_of
    from quintain.trainers.examples import Example
    from quintain.trainers.learner import Learner

    about = STAGES[stage]
    text = f"model: {{path: {model}, compute_dtype: {dtype}}}\nrollout: {{dtype: {dtype}}}\ndataset: none.jsonl\n"
    options = {"algorithm": about["trainer"], "learning_rate": RATE, "lr_scheduler_type": "constant"}
    config = parse_config(text, [f"trainer.{name}={value}" for name, value in options.items()])
    learner: Any = Learner(config, algorithm_of(config), checkpoints=folder, logs=folder)
    examples = [
        Example(
            "row",
            tuple(as_ints(prompt + answer) for answer in answers),
            tuple(((len(prompt), len(prompt) + len(answer)),) for answer in answers),
            len(prompt),
        )
        for prompt, answers in rows(stage, about["rows"] * steps)
    ]
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        figures = learner.update(examples[step * about["rows"] : (step + 1) * about["rows"]], step=step)
        seconds.append(time.perf_counter() - began)
        losses.append(figures["loss"])
    learner.close()
    return seconds, losses


def trl(stage: str, steps: int, model: Path, dtype: str, folder: Path) -> tuple[list[float], list[float]]:
    """(seconds, losses) of the steps of TRL's trainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    about = STAGES[stage]
    made = rows(stage, about["rows"] * steps)
    prompts = [prompt for prompt, _ in made]
    if about["trainer"] == "sft":
        columns = {
            "input_ids": [prompt + answers[0] for prompt, answers in made],
            "labels": [[-100] * len(prompt) + answers[0] for prompt, answers in made],
        }
    else:
        full = about["trainer"] == "reward"
        columns = {
            f"{name}_ids": [(prompt if full else []) + answers[at] for prompt, answers in made]
            for at, name in enumerate(("chosen", "rejected"))
        }
        columns |= {} if full else {"prompt_ids": prompts}
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    torch.manual_seed(0)
    kinds = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer), "reward": (RewardConfig, RewardTrainer)}
    make_config, make_trainer = kinds[about["trainer"]]
    args = make_config(
        output_dir=str(folder), per_device_train_batch_size=about["rows"], max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        bf16=dtype == "bfloat16", gradient_checkpointing=False, disable_tqdm=True, train_sampling_strategy="sequential",
        max_length=None, seed=0,
    )  # fmt: skip
    if about["trainer"] == "reward":
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    class Ready(make_trainer):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # of token ids already

    trainer: Any = Ready(
        model=loaded,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def side(args: argparse.Namespace) -> None:
    """One side of one stage, in this process; its figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run = quintain if args.side == "quintain" else trl
        seconds, losses = run(args.stage, args.steps + 1, Path(args.model), args.dtype, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds[1:], "losses": losses, "peak_bytes": peak}))


def asked(name: str, stage: str, steps: int, model: Path, dtype: str) -> dict[str, Any]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, f"--side={name}", f"--stage={stage}", f"--steps={steps}", f"--model={model}"]
    done = subprocess.run([*command, f"--dtype={dtype}"], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{stage}: {name} {[round(x, 2) for x in found['seconds']]} s, {found['peak_bytes'] / 2**30:.2f} GiB",
        file=sys.stderr,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(STAGES))
    parser.add_argument("--small", action="store_true", help="a toy model, to try the script out")
    parser.add_argument("--side", choices=("quintain", "trl"))
    for hidden in ("--stage", "--model", "--dtype"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args)
    from quintain.rollout.engines.dtypes import faster

    dtype = args.dtype or faster()[0]
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {"dtype": dtype}
    with tempfile.TemporaryDirectory() as folder:
        for stage in args.only.split(","):
            model = model_of(stage, Path(folder) / ("words" if stage == "sft_words" else "model"), small=args.small)
            found: dict[str, list[dict[str, Any]]] = {"quintain": [], "trl": []}
            for _ in range(args.rounds):
                for name, results in found.items():
                    results.append(asked(name, stage, args.steps, model, dtype))
            seconds = {n: statistics.median(x for r in all_ for x in r["seconds"]) for n, all_ in found.items()}
            peaks = {n: max(r["peak_bytes"] for r in all_) for n, all_ in found.items()}
            ratios |= {
                f"{stage}_time": seconds["quintain"] / seconds["trl"],
                f"{stage}_memory": peaks["quintain"] / peaks["trl"],
            }
            both = zip(found["quintain"][0]["losses"], found["trl"][0]["losses"], strict=True)
            detail[stage] = {
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "gib": {name: round(value / 2**30, 3) for name, value in peaks.items()},
                "largest_loss_difference": max(abs(a - b) for a, b in both),
            }
    report("trainers_vs_trl", ratios, detail)


if __name__ == "__main__":
    main()
