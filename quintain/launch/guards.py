"""What a run's first step is looked at for: that it is all of something, or none, and so teaches nothing.

Such a run goes on for hours and looks like one that learns slowly. Pure but for `Guarded`, which stops the run or says
so once, as `guards.first_step` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quintain.failure import QuintainError, one_line
from quintain.tool_calls import looks_like_a_call
from quintain.trainers.sources import BatchSource
from quintain.trajectory import Ending, Finish, Group, Trajectory

EXAMPLE_CHARS = 160


class Guarded:
    """The batches of `source`; the first one is looked at, and what is wrong with it is told to `say` or raised."""

    def __init__(self, source: BatchSource[Sequence[Group]], *, stop: bool, say: Callable[[str], None]) -> None:
        self._source, self._stop, self._say = source, stop, say

    def batch(self, step: int) -> Sequence[Group]:
        """The groups of `step`. QuintainError, one line, where the first step's are all of something."""
        groups = self._source.batch(step)
        problem = first_step_problem(groups) if step == 0 else None
        if problem is not None and self._stop:
            raise QuintainError(f"{problem}; to train all the same set guards.first_step: warn")
        if problem is not None:
            self._say(f"warning: {problem}")
        return groups


def first_step_problem(groups: Sequence[Group]) -> str | None:
    """What all episodes that did not fail have in common, so that nothing is learned; None where all is well."""
    rows = [row for group in groups for row in group.trajectories if row.failure is None]
    turns = [turn for row in rows for turn in row.turns]
    if not any(len(turn.output_ids) for turn in turns):
        return f"no token of the first step was sampled: its {len(rows)} episodes have nothing to train on"
    calls = [turn.message.text for turn in turns if looks_like_a_call(turn.message.text)]
    if calls and not any(turn.message.tool_calls for turn in turns):
        return (
            f"no tool call was read in the first step, though {len(calls)} of {len(turns)} turns look like one"
            f" ({_shown(calls[0])}): is rollout.tool_calls the format that the model writes?"
        )
    if all(any(turn.finish is Finish.LENGTH for turn in row.turns) for row in rows):
        return (
            f"every episode of the first step was cut off at its limit of tokens ({_example(rows[0])}): raise"
            " rollout.max_completion_length or rollout.max_length, or see that the model can end a turn (rollout.stop)"
        )
    if all(row.ending is Ending.TRUNCATED for row in rows):
        return (
            f"every episode of the first step was truncated ({_example(rows[0])}): raise rollout.max_turns, or the"
            " environment's own limit"
        )
    if len(rows) > 1 and len({row.reward for row in rows}) == 1:
        return (
            f"every reward of the first step is {rows[0].reward:g} ({_example(rows[0])}): the tasks are too hard or too"
            " easy for this model, or the answer is not where the verifier looks for it"
        )
    return None


def _example(row: Trajectory) -> str:
    return f"{row.task_id or row.task}: {_shown(row.turns[-1].message.text if row.turns else '')}"


def _shown(text: str) -> str:
    return f"“{one_line(text, EXAMPLE_CHARS)}”"
