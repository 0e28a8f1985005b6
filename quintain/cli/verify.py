"""`quintain verify`: score answers from the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


@click.command("verify")
@click.argument("name")
@click.option("--answer", help="The answer to score.")
@click.option("--reference", help="What it is compared with.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the verifier (YAML value)."
)
@click.option("--json", "as_json", is_flag=True, help="Print verdicts as JSON, one a line.")
def command(name: str, answer: str | None, reference: str | None, options: tuple[str, ...], as_json: bool) -> int:
    """Score an answer, or JSON lines {"answer": ..., "reference": ...} from standard input.

    Exit code 0 if every answer is correct, 1 if not.
    """
    from quintain.cli.options import parse_options
    from quintain.codec import to_json
    from quintain.verifiers import Item, verify_sync

    items = _items(answer, reference)
    verdicts = verify_sync(name, [Item(*item) for item in items], parse_options(options, "--option"))
    for verdict in verdicts:
        if as_json:
            click.echo(to_json(verdict))
        else:
            score = "no score" if verdict.score is None else f"{verdict.score:g}"
            click.echo(f"{verdict.outcome}: {score}" + (f" ({verdict.failure.message})" if verdict.failure else ""))
    return 0 if all(verdict.score == 1.0 for verdict in verdicts) else 1


def _items(answer: str | None, reference: str | None) -> list[tuple[str, Any]]:
    if (answer is None) != (reference is None):
        raise click.UsageError("give both --answer and --reference, or neither and JSON lines on standard input")
    if answer is not None:
        return [(answer, reference)]
    items = []
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            items.append((str(row["answer"]), row["reference"]))
        except (ValueError, KeyError, TypeError):
            raise click.UsageError(
                f'standard input, line {number}: expected {{"answer": ..., "reference": ...}}, got {line.strip()[:80]}'
            ) from None
    return items
