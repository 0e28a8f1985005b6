"""The sandbox benchmark runs, and its last line is what benchmarks promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "sandbox.py"


@pytest.mark.needs_bubblewrap
@pytest.mark.parametrize("options", [[], ["--user"]])
def test_the_last_line_has_both_ratios_and_the_slowest_runs(options: list[str]) -> None:
    command = [sys.executable, SCRIPT, "--rounds", "2", "--runs", "6", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["benchmark"] == "sandbox"
    assert set(said["ratios"]) == {"vs_subprocess", "vs_bubblewrap"}
    assert all(ratio > 0 for ratio in said["ratios"].values())
    assert set(said["detail"]["p99_ms"]) == {"subprocess", "bubblewrap", "ours"}
