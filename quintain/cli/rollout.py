"""`quintain rollout`: serve the rollouts of an experiment, check the journal of a run, hand out its trajectories."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.group("rollout")
def command() -> None:
    """Serve the rollouts of an experiment, check the journal of a run, hand out its trajectories."""


@command.command("serve")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8200, show_default=True, help="0 picks a free one.")
@click.option(
    "--token",
    default="",
    envvar="QUINTAIN_ROLLOUT_TOKEN",
    help="Bearer token clients must send, or lines of name:secret [env: QUINTAIN_ROLLOUT_TOKEN].",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="A file of bearer tokens: lines of name:secret.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run directory to make or to --resume.")
@click.option("--resume", is_flag=True, help="Go on with the journal of the newest run of this name, or of --run-dir.")
@click.option("--max-runs", type=click.IntRange(1), default=64, show_default=True, help="Runs under way at once.")
@click.option(
    "--max-episodes", type=click.IntRange(1), default=100_000, show_default=True, help="Their episodes, in all."
)
@click.option(
    "--results-mb", type=click.IntRange(1), default=512, show_default=True, help="Finished groups nobody has fetched."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def serve(
    file: Path,
    overrides: tuple[str, ...],
    host: str,
    port: int,
    token: str,
    token_file: Path | None,
    run_dir: Path | None,
    resume: bool,
    max_runs: int,
    max_episodes: int,
    results_mb: int,
    as_json: bool,
) -> None:
    """Serve the rollouts of the experiment FILE over HTTP, until SIGTERM.

    Its environment is started as well, unless FILE says where one is running. Tasks are handed in with POST /v1/runs;
    a trainer publishes weights and takes batches.
    """
    from quintain.config import load_config
    from quintain.serving.tokens import Tokens

    config = load_config(file, overrides)
    tokens = Tokens.gathered(token, "--token or the variable QUINTAIN_ROLLOUT_TOKEN", token_file)
    os.environ.pop("QUINTAIN_ROLLOUT_TOKEN", None)  # so that no environment's code finds it there
    from quintain.launch.rollout import serve_rollout
    from quintain.rollout.server.task_runs import RunLimits

    serve_rollout(
        config,
        host=host,
        port=port,
        tokens=tokens,
        limits=RunLimits(runs=max_runs, episodes=max_episodes, result_bytes=results_mb << 20),
        resume=resume,
        run_dir=run_dir,
        as_json=as_json,
    )


@command.command("audit")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def audit(run: Path, as_json: bool) -> int:
    """Check the journal of RUN, a run's directory or its journal.db: was every prompt used once, and nothing lost?

    Exit code 0 if it balances, 1 if not. The run may be going on, have ended or have crashed.
    """
    from quintain.rollout.journal.audit import audit as audit_journal

    report = audit_journal(run / "journal.db" if run.is_dir() else run)
    if as_json:
        from quintain.codec import to_builtins

        click.echo(json.dumps({"ok": report.ok, **to_builtins(report)}))
    else:
        from quintain.console import console_for

        console = console_for()
        console.print(report.table())
        for problem in report.problems:
            console.print(f"wrong: {problem}", highlight=False, soft_wrap=True)
    return 0 if report.ok else 1


@command.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["atif", "openenv"]), required=True, help="Whose format.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, of JSON lines.")
def export(run: Path, form: str, out: Path) -> None:
    """Write the trajectories of RUN, a run's directory or a Parquet file, as documents of another format.

    atif: Harbor's Agent Trajectory Interchange Format 1.8. openenv: OpenEnv's TrainingTrace. Both with exact tokens.
    """
    from quintain.rollout.journal.exchange import export as write

    count, empty = write(run, out, "atif" if form == "atif" else "openenv")
    left_out = f"; {empty} that failed before their first turn are left out" if empty else ""
    click.echo(f"{count} trajectories written to {out}{left_out}")
