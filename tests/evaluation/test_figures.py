"""The figures of an evaluation: failures are no zeros, and the order of finishing is nobody's business."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quintain.arrays import as_floats, as_ints
from quintain.evaluation.figures import figures_json, figures_of
from quintain.failure import Failure, FailureKind, Stage
from quintain.messages import assistant
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

BROKE = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "slow")


def row(index: int, member: int, reward: float | None, usage: dict[str, int] | None = None) -> Trajectory:
    ending = Ending.FAILED if reward is None else Ending.TERMINATED
    failure = BROKE if reward is None else None
    info = {} if usage is None else {"usage": usage}
    return Trajectory("i", "g", f"t/{index}", index, member, 0, (), ending, reward, failure, info=info)


ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.none() | st.sampled_from([0.0, 0.1, 0.3, 1.0])),
    min_size=1,
    unique_by=lambda found: found[:2],
)


@given(rows=ROWS, data=st.data())
def test_figures_do_not_depend_on_the_order_of_finishing(
    rows: list[tuple[int, int, float | None]], data: st.DataObject
) -> None:
    made = [row(*one) for one in rows]
    shuffled = data.draw(st.permutations(made))
    assert figures_of(shuffled, ks=(1, 2), pass_at=1.0) == figures_of(made, ks=(2, 1), pass_at=1.0)


@given(rows=ROWS)
def test_a_failure_changes_no_figure_but_the_count_of_failures(rows: list[tuple[int, int, float | None]]) -> None:
    made = [row(*one) for one in rows]
    with_failure = figures_of([*made, row(0, 9, None)], ks=(1, 2), pass_at=0.3)
    without = figures_of(made, ks=(1, 2), pass_at=0.3)
    assert (with_failure.mean, with_failure.passes, with_failure.verified) == (
        without.mean,
        without.passes,
        without.verified,
    )
    assert with_failure.failed == without.failed + 1 == sum(reward is None for *_, reward in rows) + 1
    assert with_failure.tasks_with_failures == len({index for index, _, reward in rows if reward is None} | {0})


def test_a_task_whose_samples_all_failed_counts_as_one_without_a_verdict() -> None:
    told = figures_json(figures_of([row(0, 0, 1.0), row(1, 0, None), row(1, 1, None)], ks=(1, 2), pass_at=1.0))
    assert (told["tasks"], told["tasks_with_failures"], told["tasks_without_verdict"]) == (2, 1, 1)
    assert told["failures"] == {"timeout in step": 2}
    assert told["pass"] == {"1": {"value": 1.0, "ci95": None, "se": None, "tasks": 1}, "2": None}


def test_tokens_that_one_episode_does_not_tell_are_not_made_up() -> None:
    told = row(0, 0, 1.0, {"prompt_tokens": 3, "output_tokens": 2})
    said = Turn(as_ints([]), as_ints([]), as_floats([]), Finish.STOP, (), assistant("4"))
    silent = Trajectory("i", "g", "t/1", 1, 0, 0, (said,), Ending.TERMINATED, 1.0)
    counted = Trajectory(
        "i", "g", "t/2", 2, 0, 0,
        (Turn(as_ints([1, 2]), as_ints([3]), as_floats([0.0]), Finish.STOP, (VersionSpan(0, 0, 1),), assistant("4")),),
        Ending.TERMINATED, 1.0,
    )  # fmt: skip
    assert figures_json(figures_of([told, counted], ks=(1,), pass_at=1.0))["tokens"] == {"prompt": 5, "output": 3}
    assert figures_json(figures_of([told, silent], ks=(1,), pass_at=1.0))["tokens"] == {"prompt": None, "output": None}
