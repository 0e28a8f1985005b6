"""`quintain train`: run an experiment, or go on with one."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the file.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the newest run of this name.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="The run directory to make or, with --resume, to go on with."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON at the end, progress to stderr.")
def command(file: Path, overrides: tuple[str, ...], resume: bool, run_dir: Path | None, as_json: bool) -> int:
    """Train the policy that FILE describes.

    Everything the run makes is in its run directory: the resolved config, metrics, trajectories, journal,
    checkpoints, logs, summary.json and a reward curve.
    """
    from quintain.config import load_config

    config = load_config(file, overrides)
    from quintain.launch.train import train

    return train(config, resume=resume, run_dir=run_dir, as_json=as_json)
