"""`quintain verify`: score answers from the command line, or serve the verifiers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


class _Verify(click.Command):
    """`serve` is a command of its own, any other word the name of a verifier."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["serve"]:
            return serve.make_context(f"{info_name} serve", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


@click.command("verify", cls=_Verify)
@click.argument("name")
@click.option("--answer", help="The answer to score.")
@click.option("--reference", help="What it is compared with.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the verifier (YAML value)."
)
@click.option("--json", "as_json", is_flag=True, help="Print verdicts as JSON, one a line.")
def command(name: str, answer: str | None, reference: str | None, options: tuple[str, ...], as_json: bool) -> int:
    """Score an answer, or JSON lines {"answer": ..., "reference": ...} from standard input.

    Exit code 0 if every answer is correct, 1 if not. `quintain verify serve` is the same as a service (see its
    --help).
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


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8100, show_default=True, help="0 picks a free one.")
@click.option(
    "--token-env",
    default="QUINTAIN_VERIFY_TOKEN",
    show_default=True,
    metavar="NAME",
    help="The environment variable with the bearer tokens: one a line, as name:secret.",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="A file of bearer tokens, in the same form.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes of each verifier that has some.")
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="NAME[.OPTION]",
    help="A verifier (judge, reward_model) or an option that clients may use although it is the operator's.",
)
@click.option("--set", "presets", multiple=True, metavar="NAME.OPTION=VALUE", help="An option of a verifier (YAML).")
@click.option("--queue-items", type=click.IntRange(1), default=16384, show_default=True, help="Items at once, in all.")
@click.option("--concurrent-items", type=click.IntRange(1), help="Items at once, for one token.")
@click.option("--items-per-minute", type=click.FloatRange(min=1), help="Items over time, for one token.")
@click.option("--cache-mb", type=click.IntRange(1), default=64, show_default=True, help="Remembered verdicts.")
@click.option(
    "--timeout-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="A request."
)
@click.option(
    "--grace-s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long what runs may take to finish after SIGTERM.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def serve(
    host: str,
    port: int,
    token_env: str,
    token_file: Path | None,
    workers: int | None,
    allowed: tuple[str, ...],
    presets: tuple[str, ...],
    queue_items: int,
    concurrent_items: int | None,
    items_per_minute: float | None,
    cache_mb: int,
    timeout_s: float,
    grace_s: float,
    as_json: bool,
) -> None:
    """Serve the verifiers over HTTP, until SIGTERM.

    POST /v1/verify, GET /v1/verifiers, /health and /metrics; and SandboxFusion's /run_code, /submit and /v1/ping.
    """
    from quintain.verifiers.service.limits import ServiceLimits
    from quintain.verifiers.service.policy import AccessPolicy
    from quintain.verifiers.service.serve import read_tokens, serve_verifiers

    serve_verifiers(
        host=host,
        port=port,
        tokens=read_tokens(token_env, token_file),
        policy=AccessPolicy(frozenset(allowed), _presets(presets), workers),
        limits=ServiceLimits(
            queue_items=queue_items,
            concurrent_items=concurrent_items,
            items_per_minute=items_per_minute,
            cache_bytes=cache_mb << 20,
            timeout_s=timeout_s,
            grace_s=grace_s,
        ),
        json_ready=as_json,
    )


def _presets(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    from quintain.cli.options import parse_options

    out: dict[str, dict[str, Any]] = {}
    for name, value in parse_options(pairs, "--set").items():
        verifier, dot, option = name.partition(".")
        if not dot or not option:
            raise click.UsageError(f"--set {name}: expected NAME.OPTION=VALUE, such as judge.model=m")
        out.setdefault(verifier, {})[option] = value
    return out


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
