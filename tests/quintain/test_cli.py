"""The command line as a user finds it by asking for help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from quintain.cli import cli
from quintain.failure import QuintainError

COMMANDS = [
    "train",
    "eval",
    "env check",
    "env serve",
    "env list",
    "env new",
    "verify",
    "verify serve",
    "rollout serve",
    "rollout audit",
    "reverify",
    "config check",
    "config schema",
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_commands_help_calls_it_what_the_user_called_it(words: str) -> None:
    result = CliRunner().invoke(cli, [*words.split(), "--help"], prog_name="quintain")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: quintain {words} ")


def test_what_is_rarely_meant_and_what_this_machine_refuses_is_said_when_a_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("model: {path: m}\nenvironment: {name: math}\ntrainer: {loss_type: cispo, processes: 4096}\n")
    result = CliRunner().invoke(cli, ["config", "check", str(file)])
    assert result.exit_code == 0
    ok, rarely, refused = result.output.splitlines()
    assert ok == f"{file}: ok"
    assert rarely.startswith("note: trainer.epsilon_high: for cispo this is the absolute upper bound")
    assert refused == f"note: trainer.processes: 4096 asked for, this machine has {os.cpu_count()} cores: lower it"
    fsdp = ["--set", "trainer.parallel=fsdp", "--set", "trainer.optim=muon"]
    with pytest.raises(QuintainError, match="optim: muon needs whole matrices, and fsdp shards them"):
        CliRunner().invoke(cli, ["config", "check", str(file), *fsdp], catch_exceptions=False)
