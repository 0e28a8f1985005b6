"""What an evaluation's episodes say, as figures, as JSON and as tables. Pure.

Invariants:
- a failure is no zero: it enters no mean, no pass@k and no interval, and is counted beside them with the tasks it hit;
- the figures depend on the episodes alone, not on the order in which they finished or on when the process was killed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from quintain.evaluation.passk import Estimate, mean_estimate, pass_estimate
from quintain.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one evaluation. Token counts are None where an endpoint did not tell them.

    `mean` is of the rewards of the `verified` episodes, `passes[k]` is pass@k, where a sample passes with a reward of
    at least `pass_at`; both are None where nothing was verified (or no task has k verified samples).
    """

    mean: Estimate | None
    passes: Mapping[int, Estimate | None]
    pass_at: float
    tasks: int
    verified: int
    failed: int
    failures: Mapping[str, int]
    tasks_with_failures: int
    tasks_without_verdict: int
    prompt_tokens: int | None
    output_tokens: int | None


def figures_of(rows: Iterable[Trajectory], *, ks: Sequence[int], pass_at: float) -> Figures:
    """What `rows` say, all of one evaluation."""
    rows = sorted(rows, key=lambda row: (row.index, row.member))
    rewards: dict[int, list[float]] = defaultdict(list)
    hit: set[int] = set()
    failures: Counter[str] = Counter()
    for row in rows:
        rewards[row.index]  # a task counts although all of its samples failed
        if row.reward is not None:
            rewards[row.index].append(row.reward)
        elif row.failure is not None:
            hit.add(row.index)
            failures[f"{row.failure.kind} in {row.failure.stage}"] += 1
    counts = [(len(task), sum(reward >= pass_at for reward in task)) for task in rewards.values()]
    usages = [_usage(row) for row in rows]
    return Figures(
        mean=mean_estimate(list(rewards.values())),
        passes={k: pass_estimate(counts, k) for k in sorted(set(ks))},
        pass_at=pass_at,
        tasks=len(rewards),
        verified=sum(n for n, _ in counts),
        failed=failures.total(),
        failures=dict(failures.most_common()),
        tasks_with_failures=len(hit),
        tasks_without_verdict=sum(n == 0 for n, _ in counts),
        prompt_tokens=_sum([prompt for prompt, _ in usages]),
        output_tokens=_sum([output for _, output in usages]),
    )


def figures_json(figures: Figures) -> dict[str, Any]:
    """The figures as JSON: 95 % intervals are [low, high]."""
    mean = {} if figures.mean is None else figures.mean.as_json()
    return {
        "mean_reward": mean.get("value"),
        "mean_reward_ci95": mean.get("ci95"),
        "mean_reward_se": mean.get("se"),
        "pass_at": figures.pass_at,
        "pass": {str(k): found and found.as_json() for k, found in figures.passes.items()},
        "tasks": figures.tasks,
        "verified": figures.verified,
        "failed": figures.failed,
        "failures": dict(figures.failures),
        "tasks_with_failures": figures.tasks_with_failures,
        "tasks_without_verdict": figures.tasks_without_verdict,
        "tokens": {"prompt": figures.prompt_tokens, "output": figures.output_tokens},
    }


def figures_table(figures: Figures) -> Table:
    """The figures as people read them."""
    table = Table("", "value", "95 % interval", "over")
    if figures.mean is not None:
        over = f"{figures.mean.samples} samples of {_tasks(figures.mean.tasks)}"
        table.add_row("mean reward", f"{figures.mean.value:.4f}", _between(figures.mean, ".4f"), over)
    for k, found in figures.passes.items():
        if found is None:
            table.add_row(f"pass@{k}", "–", "–", f"no task has {k} verified samples")
        else:
            left_out = figures.tasks - found.tasks
            over = _tasks(found.tasks) + (f", {left_out} left out" if left_out else "")
            table.add_row(f"pass@{k}", f"{found.value:.1%}", _between(found, ".1%"), over)
    share = figures.tasks_with_failures / figures.tasks if figures.tasks else 0.0
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures.failures.items())
    table.add_row("failures", str(figures.failed), kinds or "–", f"{share:.1%} of {_tasks(figures.tasks)}")
    counted = (figures.prompt_tokens, figures.output_tokens)
    shown = "not told" if None in counted else f"{counted[0]:,} in, {counted[1]:,} out"
    table.add_row("tokens", shown, "–", "all turns")
    return table


def _usage(row: Trajectory) -> tuple[int | None, int | None]:
    """Tokens that the policy was given and that it sampled, in all turns; None where nobody counted them."""
    told = row.info.get("usage", {})
    if "prompt_tokens" in told and "output_tokens" in told:
        return told["prompt_tokens"], told["output_tokens"]
    prompt = sum(len(turn.prompt_ids) for turn in row.turns)
    return (None, None) if row.turns and not prompt else (prompt, row.output_tokens)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _between(found: Estimate, form: str) -> str:
    return "–" if found.low is None or found.high is None else f"{found.low:{form}} to {found.high:{form}}"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
