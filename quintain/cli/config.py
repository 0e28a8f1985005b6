"""`quintain config`: check an experiment, or print the schema of all fields."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from quintain.failure import QuintainError


@click.group("config")
def command() -> None:
    """Check an experiment, or print its schema."""


@command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the file.")
@click.option("--resolved", is_flag=True, help="Print the experiment with every default written out.")
@click.option("--json", "as_json", is_flag=True, help="Print the resolved experiment as JSON.")
def check(file: Path, overrides: tuple[str, ...], resolved: bool, as_json: bool) -> None:
    """Find every mistake in FILE without loading anything heavy."""
    from quintain.config import dump_config, load_config
    from quintain.launch.ranks import check_ranks

    config = load_config(file, overrides)
    if as_json:
        click.echo(json.dumps(config.model_dump(mode="json"), indent=2))
    elif resolved:
        click.echo(dump_config(config), nl=False)
    else:
        click.echo(f"{file}: ok")
        for line in config.trainer.warnings():
            click.echo(f"note: trainer.{line}")
        try:
            check_ranks(config, os.environ)
        except QuintainError as error:  # no mistake: the run may be meant for another machine, or for a launcher
            click.echo(f"note: {error}")


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of an experiment, for editors."""
    from quintain.config import ExperimentConfig

    click.echo(json.dumps(ExperimentConfig.model_json_schema(), indent=2))
