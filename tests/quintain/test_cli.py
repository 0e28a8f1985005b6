"""The command line as a user finds it by asking for help."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from quintain.cli import cli

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
