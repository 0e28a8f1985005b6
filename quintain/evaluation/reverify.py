"""`quintain reverify`: stored trajectories scored again by another verifier, without sampling a token.

An item is a trajectory's final answer (the last assistant message, or all of them) and its task's reference
(`quintain.evaluation.references`).

Invariants:
- a trajectory that had failed has no final answer to score: it is counted, and stays as it is;
- a verifier that fails gives no score: such a trajectory is in neither mean, and written as a failure;
- nothing that is stored is changed: what is rescored goes to a new folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from quintain.evaluation.episode_log import EPISODES, known_by, read_episodes
from quintain.evaluation.passk import Estimate, mean_estimate
from quintain.failure import QuintainError
from quintain.nearest import IDENTIFIER
from quintain.rollout.journal.parquet import TRAJECTORIES, Stored, read_trajectories, write_stored
from quintain.trajectory import Ending, Trajectory
from quintain.verdict import Verdict
from quintain.verifiers.base import Item, Verifier

ITEMS_AT_ONCE: Final = 256
SAME: Final = 1e-9
"""Rewards closer than this are the same."""
CLASSES: Final = ("pass", "partial", "zero", "failure")
"""What a reward can be: at least `pass_at`, above zero, not above zero, or none at all."""


AnswerFrom = Literal["last", "all"]


@dataclass(frozen=True, slots=True)
class Rescored:
    """A stored trajectory, the reward it had (None: it had failed) and the verdict now (None: not asked)."""

    stored: Stored
    before: float | None
    verdict: Verdict | None

    @property
    def after(self) -> float | None:
        """The score now; None where there is none."""
        return None if self.verdict is None else self.verdict.score

    @property
    def changed(self) -> bool:
        """Whether the reward is another one, or there is none any more."""
        if self.verdict is None or self.before is None:
            return False
        return self.after is None or abs(self.after - self.before) > SAME


@dataclass(frozen=True, slots=True)
class RescoreReport:
    """What rescoring shows. `confusion[old][new]` counts trajectories by class (`CLASSES`, new also "not rescored").

    The means and their `difference` (now minus before, paired) are over trajectories with both numbers, their standard
    errors clustered by task.
    """

    rescored: int
    failed_before: int
    failures_now: int
    changed: int
    before: Estimate | None
    after: Estimate | None
    difference: Estimate | None
    confusion: Mapping[str, Mapping[str, int]]
    outcomes: Mapping[str, int]


def load_stored(run: Path, *, only: str | None = None) -> list[Stored]:
    """The trajectories of a run, of an evaluation's folder, of a folder of Parquet files, or of one such file.

    With `only` those of that environment. Raises QuintainError where there are none.
    """
    rows = _stored(run)
    found = [row for row in rows if only in (None, row.trajectory.environment)]
    if rows and not found:
        names = ", ".join(sorted({row.trajectory.environment for row in rows}))
        raise QuintainError(f"--only: no trajectory is of {only!r}: they are of {names}")
    return found


def _stored(run: Path) -> list[Stored]:
    if (run / TRAJECTORIES).is_dir():
        return list(read_trajectories(run / TRAJECTORIES))
    if (run / EPISODES).is_file():
        return [Stored(run.name, 0, row) for row in _latest(read_episodes(run)[0])]
    if run.exists():
        return list(read_trajectories(run))
    raise QuintainError(f"there is no {run}: give a run's folder, or a file of its trajectories")


def _latest(rows: Sequence[Trajectory]) -> list[Trajectory]:
    """An evaluation's episodes in order; one that was played again counts as it came out last."""
    return [row for _, row in sorted({known_by(row): row for row in rows}.items())]


def answer_of(row: Trajectory, answer: AnswerFrom) -> str:
    """The final answer: the last assistant message's text, or that of all of them, a blank line between."""
    texts = [turn.message.text for turn in row.turns]
    return "\n\n".join(texts) if answer == "all" else texts[-1] if texts else ""


def rescore(
    rows: Sequence[Stored],
    references: Sequence[Any],
    verifier: Verifier,
    *,
    answer: AnswerFrom = "last",
    reward: str | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[Rescored]:
    """Score `rows` again, in order; `reward` names the part of the old reward to compare with, None the whole.

    `told` gets the number that is done. Closes the verifier.
    """
    before = [_old_reward(row.trajectory, reward) for row in rows]
    asked = [place for place, old in enumerate(before) if old is not None]
    verdicts: dict[int, Verdict] = {}

    async def ask() -> None:
        async with verifier:
            for start in range(0, len(asked), ITEMS_AT_ONCE):
                places = asked[start : start + ITEMS_AT_ONCE]
                items = [Item(answer_of(rows[place].trajectory, answer), references[place]) for place in places]
                verdicts.update(zip(places, await verifier.verify(items), strict=True))
                told(len(verdicts))

    asyncio.run(ask())
    return [Rescored(row, before[place], verdicts.get(place)) for place, row in enumerate(rows)]


def _old_reward(row: Trajectory, part: str | None) -> float | None:
    if row.reward is None or part is None:
        return row.reward
    if part not in row.rewards:
        known = ", ".join(sorted(row.rewards)) or "none"
        raise QuintainError(f"--reward {part}: trajectory {row.id} has no such reward (its rewards: {known})")
    return row.rewards[part]


def report_on(rows: Sequence[Rescored], *, pass_at: float) -> RescoreReport:
    """What changed. Pure."""
    confusion: dict[str, Counter[str]] = {name: Counter() for name in CLASSES}
    for row in rows:
        now = "not rescored" if row.verdict is None else class_of(row.after, pass_at)
        confusion[class_of(row.before, pass_at)][now] += 1
    both = [row for row in rows if row.before is not None and row.after is not None]
    return RescoreReport(
        rescored=sum(row.verdict is not None for row in rows),
        failed_before=sum(row.before is None for row in rows),
        failures_now=sum(row.verdict is not None and row.after is None for row in rows),
        changed=sum(row.changed for row in rows),
        before=_by_task(both, lambda old, new: old),
        after=_by_task(both, lambda old, new: new),
        difference=_by_task(both, lambda old, new: new - old, rate=False),
        confusion={name: dict(found) for name, found in confusion.items() if found},
        outcomes=dict(Counter(str(row.verdict.outcome) for row in rows if row.verdict is not None).most_common()),
    )


def class_of(reward: float | None, pass_at: float) -> str:
    """Which of `CLASSES` a reward is."""
    if reward is None:
        return "failure"
    return "pass" if reward >= pass_at else "partial" if reward > 0 else "zero"


def _by_task(
    rows: Sequence[Rescored], value: Callable[[float, float], float], rate: bool | None = None
) -> Estimate | None:
    tasks: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        assert row.before is not None
        assert row.after is not None
        trajectory = row.stored.trajectory
        task = (trajectory.environment, trajectory.task, trajectory.index)
        tasks.setdefault(task, []).append(value(row.before, row.after))
    return mean_estimate(list(tasks.values()), rate=rate)


def changes(rows: Sequence[Rescored]) -> Iterator[Rescored]:
    """The trajectories whose reward changed, the largest changes first."""
    changed = [row for row in rows if row.changed]
    yield from sorted(changed, key=lambda row: -abs((row.after or 0.0) - (row.before or 0.0)))


def write_rescored(run: Path, name: str, rows: Sequence[Rescored], about: Mapping[str, Any]) -> Path:
    """Write `rows` with their new rewards as Parquet, a file a step, into a new folder beside the old ones; its path.

    Raises QuintainError where that folder exists, FailureError where the disk is full.
    """
    home = run if run.is_dir() else run.parent
    home = home.parent if home.name == TRAJECTORIES else home
    if not IDENTIFIER.fullmatch(name):
        raise QuintainError(f"--name: letters, digits, '_', '-' and '.', not {name!r}")
    folder = home / f"{TRAJECTORIES}-{name}"
    try:
        folder.mkdir(exist_ok=False)
    except FileExistsError:
        raise QuintainError(f"{folder} exists: give --name, or remove it") from None
    except OSError as error:
        raise QuintainError(f"cannot make {folder}: {error.strerror}") from None
    steps: dict[int, list[Stored]] = {}
    for row in rows:
        new = dataclasses.replace(row.stored, trajectory=rewritten(row, name, about))
        steps.setdefault(row.stored.step, []).append(new)
    try:
        for step, stored in sorted(steps.items()):
            write_stored(folder / f"step-{step:06d}.parquet", stored)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half of it would pass for all
        raise
    return folder


def rewritten(row: Rescored, name: str, about: Mapping[str, Any]) -> Trajectory:
    """The trajectory with its verdict's score as the reward, all of it at the last turn; what it was is in `info`."""
    old, verdict = row.stored.trajectory, row.verdict
    if verdict is None:
        return old
    turns = [dataclasses.replace(turn, reward=0.0) for turn in old.turns]
    if turns and verdict.score is not None:
        turns[-1] = dataclasses.replace(turns[-1], reward=verdict.score)
    before = {"reward": old.reward, "rewards": dict(old.rewards), "ending": str(old.ending)}
    before |= {"outcome": old.info.get("outcome")}
    said = {**about, "detail": _plain(verdict.detail), "before": before}
    return dataclasses.replace(
        old,
        turns=tuple(turns),
        ending=old.ending if verdict.failure is None else Ending.FAILED,
        reward=verdict.score,
        failure=verdict.failure,
        rewards={} if verdict.score is None else {name: verdict.score},
        info={**old.info, "outcome": str(verdict.outcome), "reverified": said},
    )


def _plain(detail: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(detail), default=repr))
