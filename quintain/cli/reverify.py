"""`quintain reverify`: score stored trajectories again, and show what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from quintain.evaluation.passk import Estimate
    from quintain.evaluation.reverify import Rescored, RescoreReport


@click.command("reverify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--verifier",
    "spec",
    required=True,
    metavar="NAME|FILE.py:OBJ|FILE.yaml",
    help="A verifier's name; a Verifier, a factory, or a function (answer, reference) in a file; or a rubric.",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the verifier (YAML value)."
)
@click.option("--answer", type=click.Choice(["last", "all"]), default="last", show_default=True, help="What is judged.")
@click.option("--reward", metavar="NAME", help="Compare with this named part of the old reward, not with all of it.")
@click.option("--pass-at", type=float, default=1.0, show_default=True, help="The reward from which it is a pass.")
@click.option("--env", "environment", help="The environment with the references. Default: the run's.")
@click.option("--only", metavar="TITLE", help="Of a run's several environments this one alone.")
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="An option of the environment (YAML value).")
@click.option("--split", help="The split of the tasks, where trajectories do not say it.")
@click.option("--reference-key", metavar="KEY", help="Judge by this entry of the reference.")
@click.option(
    "--examples", type=click.IntRange(0), default=10, show_default=True, help="How many changed ones to show."
)
@click.option("--write", is_flag=True, help="Write the rescored trajectories beside the old ones.")
@click.option("--name", help="Name of what is written: trajectories-NAME. Default: the verifier's.")
@click.option("--json", "as_json", is_flag=True, help="Print what changed as JSON.")
def command(
    run: Path,
    spec: str,
    options: tuple[str, ...],
    answer: str,
    reward: str | None,
    pass_at: float,
    environment: str | None,
    only: str | None,
    args: tuple[str, ...],
    split: str | None,
    reference_key: str | None,
    examples: int,
    write: bool,
    name: str | None,
    as_json: bool,
) -> int:
    """Score the trajectories of RUN again without sampling, and show what changed.

    RUN is a run's folder, an evaluation's --output, or a Parquet file of trajectories.

    \b
    quintain reverify runs/quickstart-… --verifier math --option units=strict
    quintain reverify runs/quickstart-… --verifier rubric.yaml --write
    """
    from quintain.cli.options import parse_options
    from quintain.console import console_for
    from quintain.evaluation import reverify
    from quintain.evaluation.references import Source, references_of
    from quintain.evaluation.verifier_of import make_verifier

    chosen = parse_options(options, "--option")
    verifier, named = make_verifier(spec, chosen)
    rows = reverify.load_stored(run, only=only)
    source = Source(environment, parse_options(args, "--arg"), split, reference_key)
    references = references_of(run, rows, source)
    console = console_for(stderr=as_json)
    about = {"verifier": spec, "options": chosen, "version": verifier.version}
    with console.status(f"0/{len(rows)} trajectories") as status:
        found = reverify.rescore(
            rows,
            references,
            verifier,
            answer="all" if answer == "all" else "last",
            reward=reward,
            told=lambda done: status.update(f"{done}/{len(rows)} trajectories"),
        )
    report = reverify.report_on(found, pass_at=pass_at)
    shown = list(reverify.changes(found))[:examples]
    written = reverify.write_rescored(run, name or named, found, about) if write else None
    if as_json:
        click.echo(json.dumps(_as_json(report, shown, about, written, answer)))
    else:
        for table in _tables(report, shown, answer):
            console.print(table)
        console.print(_sentence(report), highlight=False)
        if written is not None:
            console.print(f"written to {written}", highlight=False, soft_wrap=True)
    return 0


def _as_json(
    report: RescoreReport, shown: Sequence[Rescored], about: Mapping[str, Any], written: Path | None, answer: str
) -> dict[str, Any]:
    def figure(found: Estimate | None) -> dict[str, Any] | None:
        return None if found is None else found.as_json() | {"samples": found.samples}

    return {
        **about,
        "trajectories": report.rescored + report.failed_before,
        "rescored": report.rescored,
        "failed_before": report.failed_before,
        "failures_now": report.failures_now,
        "changed": report.changed,
        "mean_before": figure(report.before),
        "mean_after": figure(report.after),
        "difference": figure(report.difference),
        "confusion": report.confusion,
        "outcomes": report.outcomes,
        "examples": [_example(row, answer) for row in shown],
        "written": None if written is None else str(written),
    }


def _example(row: Rescored, answer: str) -> dict[str, Any]:
    from quintain.evaluation.reverify import answer_of

    assert row.verdict is not None
    trajectory = row.stored.trajectory
    return {
        "step": row.stored.step,
        "id": trajectory.id,
        "task": trajectory.task,
        "answer": answer_of(trajectory, "all" if answer == "all" else "last"),
        "before": row.before,
        "after": row.after,
        "outcome": str(row.verdict.outcome),
        "failure": None if row.verdict.failure is None else str(row.verdict.failure),
    }


def _tables(report: RescoreReport, shown: Sequence[Rescored], answer: str) -> list[Table]:
    from rich.table import Table
    from rich.text import Text

    from quintain.evaluation.reverify import CLASSES
    from quintain.failure import one_line

    columns = [*CLASSES, "not rescored"]
    used = [name for name in columns if any(row.get(name) for row in report.confusion.values())]
    confusion = Table("before \\ now", *used, title="Rewards", title_justify="left")
    for name, row in report.confusion.items():
        confusion.add_row(name, *(str(row.get(column, 0)) for column in used))
    tables = [confusion]
    if shown:
        changed = Table("trajectory", "answer", "before", "now", title="Changed", title_justify="left")
        for one in (_example(row, answer) for row in shown):
            now = one["failure"] or f"{one['after']:g} ({one['outcome']})"
            name = f"step {one['step']}, {one['id']}"
            changed.add_row(Text(name), Text(one_line(one["answer"], 200)), f"{one['before']:g}", Text(now))
        tables.append(changed)
    return tables


def _sentence(report: RescoreReport) -> str:
    before, after, difference = report.before, report.after, report.difference
    said = f"{report.changed} of {report.rescored} rescored changed"
    if before is not None and after is not None and difference is not None:
        said += f"; mean {before.value:.4f} before, {after.value:.4f} now ({difference.value:+.4f}"
        if difference.low is not None:
            said += f", 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
        said += ")"
    return f"{said}; {report.failures_now} now without a verdict, {report.failed_before} had failed before"
