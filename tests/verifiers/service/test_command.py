"""`quintain verify` and `quintain verify serve`, as a person or a script runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

QUINTAIN = [sys.executable, "-m", "quintain"]


def quintain(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUINTAIN, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | variables,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("verify", "math", "--reference", r"\frac12", "--answer", "0.5"), 0),
        (("verify", "--answer", "0.6", "--reference", r"\frac12", "math"), 1),
        (("verify", "mth", "--answer", "1", "--reference", "1"), 2),
    ],
)
def test_an_answer_is_scored_and_the_exit_code_says_how(arguments, code):
    assert quintain(*arguments).returncode == code


def test_the_service_says_when_it_is_ready_and_ends_when_told_to(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("ann:sesame\n")
    command = [*QUINTAIN, "verify", "serve", "--port", "0", "--json", "--workers", "1", "--token-file", str(tokens)]
    service = subprocess.Popen(
        [*command, "--set", "exact.case_sensitive=false"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"QUINTAIN_VERIFY_TOKEN": "bob:simsalabim"},
    )
    assert service.stdout is not None
    try:
        ready = json.loads(service.stdout.readline())
        assert (ready["event"], ready["pid"]) == ("ready", service.pid)
        asked = {"verifier": "exact", "items": [{"answer": "A", "reference": "a"}]}
        for secret in ("sesame", "simsalabim"):
            headers = {"authorization": f"Bearer {secret}"}
            verdicts = httpx.post(f"{ready['url']}/v1/verify", json=asked, headers=headers).json()["verdicts"]
            assert verdicts[0]["score"] == 1.0
        assert httpx.post(f"{ready['url']}/v1/verify", json=asked).status_code == 401
    finally:
        service.send_signal(signal.SIGTERM)
        rest, _ = service.communicate(timeout=30)
    assert (service.returncode, rest) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "refusing to listen on 0.0.0.0 without a token"),
        (("--allow", "jugde"), "did you mean 'judge'?"),
        (("--set", "math=3"), "expected NAME.OPTION=VALUE"),
        (("--token-file", "/nowhere/tokens"), "cannot read the tokens in /nowhere/tokens"),
        (("--prot", "1"), "--port"),
    ],
)
def test_a_service_that_cannot_begin_says_why_in_one_line(arguments, message):
    result = quintain("verify", "serve", "--port", "0", *arguments, QUINTAIN_VERIFY_TOKEN="")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_said_to_be():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = quintain("verify", "serve", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "is taken: choose another" in result.stderr
