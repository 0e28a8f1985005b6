"""The short form of `benchmarks/soak_verify.py`: hostile items, killed workers, a killed client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[3] / "benchmarks" / "soak_verify.py"


@pytest.mark.slow
def test_the_soak_of_twenty_seconds_finds_nothing_wrong():
    result = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", "20", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    detail = json.loads(result.stdout.splitlines()[-1])["detail"]
    assert detail["violations"] == []
    assert (detail["wrong"], detail["processes_left"]) == (0, 0)
    assert detail["items"] > 200
    assert detail["kills"]["worker"] >= 1
    assert detail["kills"]["client"] >= 1
    for expected in ("math correct", "math wrong", "exact correct", "regex correct", "code correct", "code wrong"):
        assert detail["outcomes"][expected] > 0
    assert result.stderr == ""
