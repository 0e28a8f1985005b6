"""What a run is looked at for: a first step that is all of something, or none, and so teaches nothing; and figures that
say, several steps in a row, that training comes apart.

Such a run goes on for hours and looks like one that learns slowly. Pure but for `Guarded` and `StepGuard`, which stop
the run or say so once, as `guards.first_step` and `guards.every_step` have it; `Guarded` has the figures of each of
several environments, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from quintain.failure import QuintainError, one_line
from quintain.tool_calls import looks_like_a_call
from quintain.trainers.sources import BatchSource
from quintain.trajectory import Ending, Finish, Group, Trajectory, by_seat

EXAMPLE_CHARS = 160
PATIENCE = 5
"""So many steps in a row have the same trouble before it is told: one may be an accident."""


class Guarded:
    """The batches of `source`; the first one is looked at, and what is wrong with it is told to `say` or raised.

    rewards: whether they are learned from, so that they must differ.
    """

    def __init__(
        self, source: BatchSource[Sequence[Group]], *, stop: bool, say: Callable[[str], None], rewards: bool = True
    ) -> None:
        self._source, self._stop, self._say, self._rewards = source, stop, say, rewards
        self.figures: dict[str, float] = {}  # of the last batch, where it is of several environments

    def batch(self, step: int) -> Sequence[Group]:
        """The groups of `step`. QuintainError, one line, where the first step's are all of something."""
        groups = self._source.batch(step)
        problem = first_step_problem(groups, rewards=self._rewards) if step == 0 else None
        if problem is not None and self._stop:
            raise QuintainError(f"{problem}; to train all the same set guards.first_step: warn")
        if problem is not None:
            self._say(f"warning: {problem}")
        self.figures = figures_by_environment(groups)
        return groups


class StepGuard:
    """The figures of one step after the other; a trouble that stays is told to `say` once, or raised."""

    def __init__(self, *, stop: bool, say: Callable[[str], None]) -> None:
        self._stop, self._say = stop, say
        self._times: dict[str, int] = {}
        self._told: set[str] = set()

    def see(self, metrics: Mapping[str, float]) -> None:
        """Look at a step. QuintainError, one line, where that is what it is to be."""
        found = step_problems(metrics)
        self._times = {name: self._times.get(name, 0) + 1 for name in found}
        for name in [name for name, times in self._times.items() if times >= PATIENCE and name not in self._told]:
            self._told.add(name)
            problem = f"{PATIENCE} steps in a row {found[name]}"
            if self._stop:
                raise QuintainError(f"{problem}; to train on all the same set guards.every_step: warn")
            self._say(f"warning: {problem}")


def step_problems(metrics: Mapping[str, float]) -> dict[str, str]:
    """What a step's figures say is coming apart, by the figure, with the reason and what helps."""
    none = float("nan")  # compares false

    def figure(name: str) -> float:
        return metrics.get(name, none)

    kl, moved, entropy = figure("kl"), figure("policy/approxkl_avg"), figure("entropy")
    value, reward = figure("critic/value_largest"), figure("critic/reward_largest")
    explained = figure("critic/explained_variance")
    troubles = {
        "kl": (
            kl > 5,
            f"the policy was {kl:.3g} nats a token from where it began (kl): it forgets what it could; raise the weight"
            " of the KL, or lower trainer.learning_rate",
        ),
        "policy/approxkl_avg": (
            moved > 0.5,
            f"the policy left the batch that it learned from ({moved:.3g} nats, policy/approxkl_avg): lower"
            " trainer.learning_rate or trainer.num_iterations",
        ),
        "critic/value_largest": (
            value > 10 * reward + 1,
            f"the critic expected up to {value:.3g} where episodes give {reward:.3g} at most: lower"
            " trainer.critic_learning_rate, or scale the rewards down",
        ),
        "critic/explained_variance": (
            explained < 0,
            f"the critic was worse than a constant (explained variance {explained:.2g}), so advantages are noise: give"
            " it critic_warmup_steps, larger batches, or another critic_learning_rate",
        ),
        "entropy": (
            entropy < 0.01 and figure("reward_std") > 0,
            f"the policy was nearly certain of every token (entropy {entropy:.2g} nats) and still not always right:"
            " nothing new is tried; raise rollout.temperature or the weight of the KL, or lower trainer.learning_rate",
        ),
    }
    return {name: text for name, (holds, text) in troubles.items() if holds}


def figures_by_environment(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward, episodes and failures of each environment of a batch, where there are several."""
    rows: dict[str, list[Trajectory]] = {}
    for row in (row for group in groups for row in group.trajectories):
        rows.setdefault(row.environment, []).append(row)
    figures: dict[str, float] = {}
    for name, played in rows.items() if len(rows) > 1 else ():
        rewards = [row.reward for row in played if row.reward is not None]
        figures |= {f"episodes/{name}": len(played), f"failed/{name}": len(played) - len(rewards)}
        figures |= {f"reward/{name}": sum(rewards) / len(rewards)} if rewards else {}
    return figures


def first_step_problem(groups: Sequence[Group], *, rewards: bool = True) -> str | None:
    """What all episodes that did not fail have in common, so that nothing is learned; None where all is well.

    rewards: whether equal ones teach nothing.
    """
    rows = [row for group in groups for row in group.trajectories if row.failure is None]
    turns = [turn for row in rows for turn in row.turns]
    if not any(len(turn.output_ids) for turn in turns):
        return f"no token of the first step was sampled: its {len(rows)} episodes have nothing to train on"
    offered = [turn.message for row in rows if row.info.get("tools") for turn in row.turns]
    calls = [message.text for message in offered if looks_like_a_call(message.text)]
    if calls and not any(message.tool_calls for message in offered):
        return (
            f"no tool call was read in the first step, though tools were on offer and {len(calls)} of {len(offered)}"
            " turns look like one"
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
    paid: dict[str, set[float | None]] = {}
    for agent, played in (seat for row in rows for seat in by_seat(row).items()):
        paid.setdefault(agent, set()).add(played.reward)
    if rewards and len(rows) > 1 and all(len(found) == 1 for found in paid.values()):
        return (
            f"every reward of the first step is {rows[0].reward:g} ({_example(rows[0])}): the tasks are too hard or too"
            " easy for this model, or the answer is not where the verifier looks for it"
        )
    return None


def _example(row: Trajectory) -> str:
    return f"{row.task_id or row.task}: {_shown(row.turns[-1].message.text if row.turns else '')}"


def _shown(text: str) -> str:
    return f"“{one_line(text, EXAMPLE_CHARS)}”"
