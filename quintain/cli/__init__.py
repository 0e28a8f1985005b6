"""The command line: `quintain`.

Each command's file holds its options and the few lines that call the library; heavy imports happen inside a command,
so `quintain --help` answers at once. Exit codes: 0 done, 1 the work failed, 2 a mistake its user can mend, 130
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from quintain import __version__
from quintain.failure import FailureError, QuintainError

COMMANDS = {
    "train": "Train a policy: quintain train FILE.yaml",
    "eval": "Evaluate a model in an environment.",
    "env": "Make, check, serve and list environments.",
    "verify": "Score finished answers.",
    "rollout": "Serve rollouts, and check the journal of a run.",
    "reverify": "Score stored trajectories again, without sampling.",
    "config": "Check an experiment, or print its schema.",
}


class _Lazy(click.Group):
    """Imports a command's file when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"quintain.cli.{cmd_name}").command  # type: ignore[no-any-return]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from quintain.nearest import one_of

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no such command '{args[0]}'{one_of(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="quintain")
def cli() -> None:
    """Reinforcement learning for language models in environments whose rewards can be verified."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = cli.main(list(sys.argv[1:] if argv is None else argv), prog_name="quintain", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except QuintainError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except FailureError as error:
        click.echo(f"Error: {error.failure}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
