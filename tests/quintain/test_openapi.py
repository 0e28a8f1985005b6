"""What schemathesis makes of `/openapi.json` of environment servers, the verifier service and rollout servers: seeded,
and short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quintain.lifeline import Lifeline

from ..rollout.serving import served

SEED = 7
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ENVIRONMENT = Path(__file__).parents[1] / "envs" / "samples.py"
COMMANDS = {"environment": ["env", "serve", f"{ENVIRONMENT}:Guess"], "verifiers": ["verify", "serve", "--workers", "1"]}


@pytest.fixture(params=[*COMMANDS, "rollouts"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "rollouts":
        with served(tmp_path) as there:
            yield there
        return
    lifeline = Lifeline()
    command = [sys.executable, "-m", "quintain", *COMMANDS[request.param], "--port", "0", "--json"]
    environ = os.environ | lifeline.environ()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(lifeline.fd,), env=environ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()
    lifeline.close()


@pytest.mark.slow
def test_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    described = httpx.get(f"{url}/openapi.json").json()
    assert "/health" in described["paths"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", CHECKS]
    limits = ["--max-examples", "5", "--seed", str(SEED), "--phases", "coverage,fuzzing", "--no-color"]
    ran = subprocess.run([*command, *limits], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, f"seed {SEED}: {ran.stdout}{ran.stderr}"
