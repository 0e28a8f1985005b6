"""`quintain eval`: evaluate a model in an environment."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("eval")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--env",
    "environment",
    help="An environment: a built-in, module:Class, file.py:Class, or a server's http address.",
)
@click.option("--model", help="A model folder, or a checkpoint of a run.")
@click.option("-n", "--num-tasks", type=click.IntRange(1), help="How many tasks. Default: all of a finite split.")
@click.option("--split", help="The split to evaluate on.")
@click.option("--temperature", type=click.FloatRange(0, 10), help="0 is greedy.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the experiment.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    file: Path | None,
    environment: str | None,
    model: str | None,
    num_tasks: int | None,
    split: str | None,
    temperature: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Evaluate the model of FILE in its environment, or --model in --env.

    \b
    quintain eval examples/quickstart.yaml --model runs/quickstart-…/checkpoints/step-000040
    quintain eval --env math --model models/SmolLM2-135M-Instruct -n 64
    """
    from quintain.config import load_config, parse_config
    from quintain.launch.evaluate import evaluate

    given: dict[str, object] = {
        "model.path": model,
        "evaluation.num_tasks": num_tasks,
        "evaluation.split": split,
        "evaluation.temperature": temperature,
    }
    if environment is not None:
        field = "url" if environment.startswith(("http://", "https://")) else "name"
        given["environment"] = {field: environment}
    flags = [f"{path}={json.dumps(value)}" for path, value in given.items() if value is not None]
    if file is not None:
        config = load_config(file, [*flags, *overrides])
    elif environment is None or model is None:
        raise click.UsageError("give an experiment FILE, or --env and --model")
    else:
        config = parse_config("{}", [*flags, *overrides], origin="quintain eval")
    return evaluate(config, as_json=as_json)
