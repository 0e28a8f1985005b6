"""`quintain eval`: evaluate a model in an environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from quintain.evaluation.players import Endpoint


@click.command("eval")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--env", "environment", help="An environment: a built-in, module:Class, file.py:Class, or a server's http address."
)
@click.option("--model", help="A model folder, or a checkpoint of a run; with --endpoint, the model's name there.")
@click.option("-n", "--num-tasks", type=click.IntRange(1), help="How many tasks. Default: all of a finite split.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Episodes of each task.")
@click.option("--k", "ks", metavar="K,K,…", help="pass@k for these k. Default: 1, and the number of samples.")
@click.option(
    "--pass-at", type=float, default=1.0, show_default=True, help="The reward from which a sample has passed."
)
@click.option("--split", help="The split to evaluate on.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 10),
    help="0 is greedy, and the default; with several samples the default is the experiment's rollout.temperature.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of one turn.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Everything random follows from it.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep finished episodes in this folder; the same command again goes on where it stopped.",
)
@click.option("--retry-failed", is_flag=True, help="Play the failed episodes of an earlier session again.")
@click.option("--endpoint", help="An OpenAI-compatible endpoint, up to /v1: evaluate its --model.")
@click.option("--key-env", metavar="NAME", help="The environment variable that holds the endpoint's key.")
@click.option(
    "--request", "fields", multiple=True, metavar="NAME=VALUE", help="A field of the endpoint's requests (YAML value)."
)
@click.option("--request-seeds", is_flag=True, help="Send the endpoint a seed with each request.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=32, show_default=True, help="Episodes at the endpoint at once."
)
@click.option(
    "--request-timeout-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="One try."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="How often a request to the endpoint is sent again.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the experiment.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    file: Path | None,
    environment: str | None,
    model: str | None,
    num_tasks: int | None,
    samples: int,
    ks: str | None,
    pass_at: float,
    split: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    output: Path | None,
    retry_failed: bool,
    endpoint: str | None,
    key_env: str | None,
    fields: tuple[str, ...],
    request_seeds: bool,
    concurrency: int,
    request_timeout_s: float,
    retries: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Evaluate the model of FILE in its environment, or --model in --env: mean reward, pass@k, failures apart.

    \b
    quintain eval examples/quickstart.yaml --model runs/quickstart-…/checkpoints/step-000040
    quintain eval --env math --model models/SmolLM2-135M-Instruct -n 64 --samples 8 --k 1,4,8
    quintain eval --env code --endpoint http://127.0.0.1:8000/v1 --model NAME --output evals/code
    """
    from quintain.config import load_config, parse_config
    from quintain.evaluation.evaluate import Asked, evaluate

    given: dict[str, object] = {
        "model.path": model,
        "evaluation.num_tasks": num_tasks,
        "evaluation.split": split,
        "evaluation.temperature": temperature,
        "rollout.max_completion_length": max_tokens,
        "seed": seed,
    }
    if environment is not None:
        field = "url" if environment.startswith(("http://", "https://")) else "name"
        given |= {"environment": {field: environment}, "environments": []}  # in place of those of FILE
    flags = [f"{path}={json.dumps(value)}" for path, value in given.items() if value is not None]
    if endpoint is not None and model is None:
        raise click.UsageError("--endpoint: give the --model to ask there")
    if endpoint is None and (key_env or fields or request_seeds):
        raise click.UsageError("--key-env, --request and --request-seeds are for an --endpoint: give it")
    if file is not None:
        config = load_config(file, [*flags, *overrides])
    elif environment is None or model is None:
        raise click.UsageError("give an experiment FILE, or --env and --model")
    else:
        config = parse_config("{}", [*flags, *overrides], origin="quintain eval")
    at: Endpoint | None = None
    if endpoint is not None:
        assert model is not None
        limits: dict[str, Any] = {"concurrency": concurrency, "timeout_s": request_timeout_s, "retries": retries}
        length = config.rollout.max_completion_length
        told = {"max_tokens": length} if "max_completion_length" in config.rollout.model_fields_set else {}
        at = _endpoint(endpoint, model, key_env, told, fields, send_seed=request_seeds, **limits)
    asked = Asked(samples, _ks(ks, samples), pass_at, output, retry_failed, at, key_env)
    return evaluate(config, as_json=as_json, asked=asked)


def _endpoint(
    url: str, model: str, key_env: str | None, request: dict[str, Any], fields: tuple[str, ...], **limits: Any
) -> Endpoint:
    from quintain.cli.options import parse_options
    from quintain.evaluation.players import Endpoint

    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--endpoint: expected an address such as http://127.0.0.1:8000/v1, not {url}")
    key = os.environ.get(key_env) if key_env else None
    if key_env and not key:
        raise click.UsageError(f"--key-env: the environment variable {key_env} is not set")
    request = request | parse_options(fields, "--request")
    if taken := sorted(request.keys() & {"messages", "model", "tools", "stream", "n"}):
        raise click.UsageError(f"--request {taken[0]}: that is for quintain to say")
    return Endpoint(url.rstrip("/"), model, key, request, **limits)


def _ks(text: str | None, samples: int) -> tuple[int, ...]:
    if text is None:
        return (1, samples)
    try:
        ks = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--k: expected whole numbers such as 1,4,8, not {text}") from None
    if wrong := [k for k in ks if not 1 <= k <= samples]:
        raise click.UsageError(f"--k: pass@{wrong[0]} needs 1 <= k <= --samples, which is {samples}")
    return (1, *ks)
