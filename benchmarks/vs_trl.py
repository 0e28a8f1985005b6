"""Seconds of training to 75 % held-out: quintain's quickstart against the same in TRL's GRPOTrainer.

Same model, questions in the same order, batch, hyper-parameters and threads, one after the other on an idle machine.
Both sides evaluate on the same 200 held-out questions every `--every` steps, outside the clock, and stop at the target.
quintain's clock includes its servers and process start-up; TRL's begins at `train()`.

    python benchmarks/vs_trl.py                    about half an hour on 2 cores
    python benchmarks/vs_trl.py --steps-only 3     seconds per step only, a few minutes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _side import ROOT, peer_python, report

from quintain.config import load_config
from quintain.rollout.engines.dtypes import faster

CONFIG = load_config(ROOT / "examples" / "quickstart.yaml")
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
TRL_OPTIONS: dict[str, dict[str, Any]] = {
    # TRL's own options on a CPU (`--steps-only 2`; figures in benchmarks/README.md).
    "bfloat16": {"bf16": True, "gradient_checkpointing": False},
    "float32": {"bf16": False, "gradient_checkpointing": False},
    "bfloat16_continuous": {
        "bf16": True,
        "gradient_checkpointing": False,
        "use_transformers_continuous_batching": True,
    },
}


def quintain(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Train with `quintain train`; its evaluations as {step, train_s, heldout}, up to the target."""
    run = folder / "quintain"
    command = [
        sys.executable,
        "-m",
        "quintain",
        "train",
        str(ROOT / "examples" / "quickstart.yaml"),
        f"--run-dir={run}",
        f"--set=seed={args.seed}",
        f"--set=trainer.max_steps={args.max_steps}",
        f"--set=evaluation.eval_steps={args.every}",
        f"--set=model.path={MODEL}",
    ]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"] + 1: row["wall_s"] for row in rows if row["kind"] == "train"}
    evals = [row for row in rows if row["kind"] == "eval"]
    return [{"step": e["step"], "train_s": steps.get(e["step"], 0.0), "heldout": e["heldout"]} for e in evals]


def trl(args: argparse.Namespace, folder: Path, options: dict[str, Any]) -> list[dict[str, float]]:
    """Train with TRL in its own virtual environment; its evaluations."""
    python = peer_python("trl", ["torch==2.13.0", "trl==1.16.*"])
    spec = {
        "model": str(MODEL),
        "threads": os.cpu_count(),
        "generations": 8,
        "batch": 64,
        "per_device": args.per_device,
        "tokens": 24,
        "max_steps": args.max_steps,
        "learning_rate": CONFIG.trainer.learning_rate,
        "scheduler": CONFIG.trainer.lr_scheduler_type,
        "seed": args.seed,
        "every": args.every,
        "target": args.target,
        "options": options,
        **questions(args.max_steps * 8),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    script = Path(__file__).with_name("_trl_quickstart.py")
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), str(script), "--spec", str(folder / "spec.json"), "--output", str(folder / "trl")]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(f"TRL: {line}", end="", file=sys.stderr, flush=True)
            if line.startswith('{"step"'):
                rows.append(json.loads(line))
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return rows


def questions(count: int) -> dict[str, list[dict[str, Any]]]:
    """The quickstart's training questions in order, and its held-out ones."""
    from quintain.envs.builtin.math import MathEnv

    options = CONFIG.environment.args

    def plain(task: Any) -> dict[str, Any]:
        return {"prompt": [m.to_openai() for m in task.prompt], "reference": str(task.reference)}

    train = MathEnv.tasks("train", **options)
    heldout = MathEnv.tasks("heldout", **options)
    return {
        "train": [plain(train[i]) for i in range(count)],
        "heldout": [plain(heldout[i]) for i in range(len(heldout))],
    }


def seconds_to(rows: list[dict[str, float]], target: float) -> float | None:
    """Training seconds at the first evaluation that reached `target`."""
    return next((row["train_s"] for row in rows if row["heldout"] >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=CONFIG.trainer.max_steps)
    parser.add_argument("--target", type=float, default=0.75)
    parser.add_argument("--per-device", type=int, default=64, help="TRL's per_device_train_batch_size")
    parser.add_argument("--trl-options", choices=TRL_OPTIONS, help="default: the faster type here")
    parser.add_argument("--steps-only", type=int, help="compare the pace of so many steps and stop")
    args = parser.parse_args()
    if args.steps_only:
        args.max_steps = args.every = args.steps_only
    with tempfile.TemporaryDirectory() as name:
        ours = quintain(args, Path(name))
        theirs = trl(args, Path(name), TRL_OPTIONS[args.trl_options or faster()[0]])
    detail: dict[str, Any] = {"quintain": ours, "trl": theirs, "seed": args.seed, "target": args.target}
    ratios = {"step": ours[-1]["train_s"] / ours[-1]["step"] / (theirs[-1]["train_s"] / theirs[-1]["step"])}
    mine, peers = seconds_to(ours, args.target), seconds_to(theirs, args.target)
    if mine is not None and peers is not None:
        ratios["time"] = mine / peers
    report("vs_trl", ratios, {**detail, "quintain_s": mine, "trl_s": peers})


if __name__ == "__main__":
    main()
