"""`quintain env`: make, check, serve and list environments."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click


@click.group("env")
def command() -> None:
    """Make, check, serve and list environments."""


@command.command("new")
@click.argument("name")
@click.option("--kind", default="single-turn", show_default=True, help="single-turn, tool, chat or shell.")
def new(name: str, kind: str) -> None:
    """Write a sound environment NAME, its tests and a run, into a new folder, to be changed into your own."""
    from quintain.envs.new import class_name, write_new

    for path in write_new(Path.cwd(), name, kind):
        click.echo(path.relative_to(Path.cwd()))
    click.echo(f"Then: cd {name}; quintain env check {name}.py:{class_name(name)}; pytest")


@command.command("check")
@click.argument("target", metavar="TARGET|URL")
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="An option of the environment (YAML value).")
@click.option("--tasks", type=click.IntRange(1), default=3, show_default=True, help="Tasks of each split to play.")
@click.option("--step-timeout-s", type=float, default=30.0, show_default=True, help="Deadline of a reset or step.")
@click.option("--token", envvar="QUINTAIN_ENV_TOKEN", help="Bearer token of the server [env: QUINTAIN_ENV_TOKEN].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    target: str, args: tuple[str, ...], tasks: int, step_timeout_s: float, token: str | None, as_json: bool
) -> int:
    """Play an environment, and say of each check whether it passed: exit code 1 where one did not.

    TARGET is a built-in (see `quintain env list`), module:Class, or file.py:Class.
    """
    import asyncio

    from quintain.cli.options import parse_options
    from quintain.envs.check import CHECKS, checks_of

    options = parse_options(args, "--arg")
    checks = asyncio.run(checks_of(target, options=options, token=token, tasks=tasks, step_s=step_timeout_s))
    passed = not any(check.problems for check in checks)
    if as_json:
        listed = [{**asdict(check), "passed": check.passed} for check in checks]
        click.echo(json.dumps({"target": target, "passed": passed, "checks": listed}, indent=2))
        return int(not passed)
    for check in checks:
        state = "ok" if check.passed else "FAIL" if check.problems else "-"
        click.echo(
            f"{state:4} {check.name:12} {f'not checked: {check.skipped}' if check.skipped else CHECKS[check.name]}"
        )
        for problem in check.problems:
            click.echo(f"       {problem}")
    return int(not passed)


@command.command("serve")
@click.argument("name")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs a token.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Processes that run episodes. 0: the server itself, which code that blocks then stops.",
)
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="An option of the environment (YAML value).")
@click.option("--step-timeout-s", type=float, default=60.0, show_default=True, help="Deadline of a reset or step.")
@click.option("--max-episodes", type=click.IntRange(1), default=1024, show_default=True, help="Episodes at once.")
@click.option("--lease-s", type=float, default=600.0, show_default=True, help="An episode left alone is closed.")
@click.option(
    "--token",
    envvar="QUINTAIN_ENV_TOKEN",
    help="Bearer token clients must send, or lines of name:secret [env: QUINTAIN_ENV_TOKEN].",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="A file of bearer tokens: lines of name:secret.")
@click.option("--token-episodes", type=click.IntRange(1), help="Open episodes of one token; no limit by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def serve(
    name: str,
    port: int,
    host: str,
    workers: int,
    args: tuple[str, ...],
    step_timeout_s: float,
    max_episodes: int,
    lease_s: float,
    token: str | None,
    token_file: Path | None,
    token_episodes: int | None,
    as_json: bool,
) -> None:
    """Serve the environment NAME over HTTP.

    NAME is a built-in (see `quintain env list`), module:Class, or file.py:Class.
    """
    from quintain.cli.options import parse_options
    from quintain.envs.options import OPTIONS_ENV
    from quintain.envs.serving.limits import EnvironmentLimits
    from quintain.envs.serving.serve import serve_env

    serve_env(
        name,
        json.loads(os.environ.pop(OPTIONS_ENV, "{}")) | parse_options(args, "--arg"),
        host=host,
        port=port,
        token=token,
        token_file=token_file,
        workers=workers,
        limits=EnvironmentLimits(
            max_episodes=max_episodes,
            token_episodes=token_episodes,
            reset_s=step_timeout_s,
            step_s=step_timeout_s,
            lease_s=lease_s,
        ),
        json_ready=as_json,
    )


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the environments that can be served by name."""
    from quintain.envs.registry import list_envs

    known = list_envs()
    if as_json:
        click.echo(json.dumps([{"name": name, "description": about} for name, about in known.items()], indent=2))
        return
    for name, about in known.items():
        click.echo(f"{name:12} {about}")
