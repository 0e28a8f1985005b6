"""How long does sampling stand still while new weights are published, as a share of a training step?

Runs the quickstart's experiment with the embedded engine, and the same model with a vLLM server, for a few steps each
(`quintain train`), and reads what the runs say in metrics.jsonl. The weights are read and checked beside the old ones,
so that only the swap and the canary stop sampling.

    python benchmarks/publish_stall.py [--steps N]

The last line is JSON: ratios `embedded` and `vllm`, the median stall divided by the median step (aim for the
quickstart: 0.05); in detail seconds of stalls, whole publishes and steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _side import ROOT, report, vllm_python

WARM_UP = 2  # steps that are not counted


def run(folder: Path, experiment: str, steps: int, *settings: str) -> list[dict[str, Any]]:
    """The measured steps of `experiment`, without its evaluations."""
    given = [f"trainer.max_steps={steps + WARM_UP}", "evaluation=null", *settings]
    command = [sys.executable, "-m", "quintain", "train", str(ROOT / "examples" / experiment), f"--run-dir={folder}"]
    subprocess.run([*command, *(part for each in given for part in ("--set", each))], check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("step", 0) > WARM_UP and "publish_stall_s" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    python = vllm_python()
    ratios: dict[str, float] = {}
    detail: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, experiment, settings in (
            ("embedded", "quickstart.yaml", []),
            ("vllm", "math_vllm.yaml", [f"rollout.vllm.python={python}", "rollout.max_staleness=0"]),
        ):
            rows = run(Path(scratch) / name, experiment, args.steps, *settings)
            if not rows:
                raise SystemExit(f"{experiment} measured no step")
            for row in rows:
                row["step_s"] = row["step_time"] + row["publish_s"]  # sampling and training, then publishing
            keys = ("publish_stall_s", "publish_s", "step_s")
            mid = {key: statistics.median(row[key] for row in rows) for key in keys}
            ratios[name] = mid["publish_stall_s"] / mid["step_s"]
            detail[name] = {key: round(value, 3) for key, value in mid.items()}
    report("publish_stall", ratios, {**detail, "aim": 0.05, "steps": args.steps})


if __name__ == "__main__":
    main()
