"""The curriculum: shares of pools, nothing twice at once, and the same order after a crash."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.config import parse_config
from quintain.envs import Action, LocalClient, MathEnv, Observation, Step, Task, TaskSource, user
from quintain.failure import QuintainError
from quintain.launch.checks import check_split
from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.curriculum import Curriculum, CurriculumRules
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.process import make_plan

from ..fake_engine import FakeEngine
from .stage import CHAT, IDENTITY, Words, batch_of, canary, plan, played, weights

SHARES = (0.3, 0.1, 0.5, 0.1)
REWARDS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=4)


def rules(**changes: Any) -> CurriculumRules:
    return CurriculumRules(**{"shares": SHARES, "hard": 0.1, "easy": 0.9, "window": 2, "pass_at": 1.0, **changes})


@given(
    size=st.integers(1, 9),
    lag=st.integers(0, 12),
    visits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), REWARDS)),
)
def test_what_is_under_way_is_not_issued_again_and_the_journal_alone_gives_the_same_state(
    size: int, lag: int, visits: list[tuple[float, list[float]]]
) -> None:
    live = Curriculum(rules(), size, lambda n: n)
    issued: list[int] = []
    done = 0
    for draw, _ in visits:
        under_way = set(issued[done:])
        task = live.choice(draw)
        assert 0 <= task < size
        assert task not in under_way or len(under_way) == size
        live.issued(task)
        issued.append(task)
        while len(issued) - done > lag:
            live.measured(issued[done], visits[done][1])
            done += 1
    again = Curriculum(rules(), size, lambda n: n)
    for task in issued:
        again.issued(task)
    for task, (_, rewards) in zip(issued[:done], visits, strict=False):
        again.measured(task, rewards)
    assert [again.choice(draw / 16) for draw in range(16)] == [live.choice(draw / 16) for draw in range(16)]


def test_visits_are_shared_out_among_the_pools_by_the_rates_of_the_last_visits() -> None:
    curriculum = Curriculum(rules(shares=(0.2, 0.2, 0.4, 0.2)), 400, lambda n: n)
    rate = (0.0, 0.5, 1.0)  # of task n: hard, medium or easy, by n
    seen: Counter[str] = Counter()
    measured: set[int] = set()
    for visit in range(1000):
        task = curriculum.choice((visit * 0.618033988749895) % 1)  # spreads evenly
        if visit >= 200:
            seen["unseen" if task not in measured else ("hard", "medium", "easy")[task % 3]] += 1
        curriculum.issued(task)
        curriculum.measured(task, [rate[task % 3] >= draw for draw in (0.25, 0.75)])
        measured.add(task)
    assert {pool: round(count / 800, 1) for pool, count in seen.items()} == {
        "unseen": 0.2, "hard": 0.2, "medium": 0.4, "easy": 0.2,
    }  # fmt: skip


def test_of_a_pool_the_task_whose_visit_is_longest_ago_comes_first_and_old_visits_are_forgotten() -> None:
    curriculum = Curriculum(rules(shares=(0.0, 0.0, 1.0, 0.0)), 3, lambda n: n)
    for task in (2, 0, 1):
        curriculum.issued(task)
    for task in (2, 0, 1):
        curriculum.measured(task, [0.0, 1.0])
    assert curriculum.choice(0.5) == 2
    curriculum.issued(2)
    curriculum.measured(2, [1.0, 1.0])
    assert curriculum.choice(0.5) == 0
    for _ in range(2):  # 3/4, and then two visits in a row are all that counts
        curriculum.issued(2)
        curriculum.measured(2, [1.0, 1.0])
    for task in (0, 1):
        curriculum.issued(task)
    assert curriculum.choice(0.5) == 2  # easy, and nothing else is left


def test_a_task_whose_episodes_all_failed_counts_as_unseen_and_does_not_stand_before_the_others() -> None:
    curriculum = Curriculum(rules(), 3, lambda n: n)
    for expected in (0, 1, 2, 0):
        assert curriculum.choice(0.0) == expected
        curriculum.issued(expected)
        curriculum.measured(expected, [])


class Graded(Words):
    """Its first tasks are always passed, the last never, and those between by chance."""

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task(str(number), (user(f"q{number}"),), number) for number in range(12)]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.passed = task.reference < 4 or (task.reference < 8 and seed % 2 == 0)
        return Observation(task.prompt)

    async def step(self, action: Action) -> Step:
        return Step(Observation(), float(self.passed), True)


def graded(folder: Path, staleness: int) -> Scheduler:
    client = LocalClient(Graded)
    plays = (played(environment="graded", size=12, curriculum=rules()), played(environment="other", size=5))
    made = plan(plays=plays, groups=4, max_staleness=staleness, refills=None if staleness else 2)
    return Scheduler(
        made,
        engine=FakeEngine(words=128),
        chat=CHAT,
        make_env=lambda _: client.episode(),
        journal=Journal(folder / "journal.db", members=made.members, identity=IDENTITY),
    )


async def steps(made: Scheduler, folder: Path, numbers: range) -> None:
    for number in numbers:
        version = weights(folder, number)
        await made.publish(version, canary(version), admit=True)
        assert await batch_of(made, number, 30.0) is not None
    await made.close()  # what was under way is lost, as with a kill


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_run_with_a_curriculum_that_is_killed_goes_on_with_the_tasks_it_would_have_had(
    staleness: int, tmp_path: Path
) -> None:
    issued: dict[str, list[tuple[int, int]]] = {}
    for name, parts in (("whole", [range(12)]), ("killed", [range(5), range(5, 6), range(6, 12)])):
        folder = tmp_path / name
        folder.mkdir()
        for part in parts:
            await steps(graded(folder, staleness), folder, part)
        made = graded(folder, staleness)
        issued[name] = [(place, index) for place, index, _ in made.journal.used()]
        await made.close()
        report = audit(folder / "journal.db")
        assert report.ok, report.problems
    assert issued["killed"] == issued["whole"]
    visits = Counter(index for place, index in issued["whole"][-20:] if made._order.source(place) == 0)
    assert len(visits) > 1


async def test_an_audit_sees_a_task_that_the_curriculum_would_not_have_chosen(tmp_path: Path) -> None:
    await steps(graded(tmp_path, 0), tmp_path, range(6))
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE groups SET task_index = (task_index + 1) % 12 WHERE place = 3")
    wrong = {check.name for check in audit(tmp_path / "journal.db").checks if check.wrong}
    assert "tasks in the seed's order" in wrong


FILE = """
model: {path: m}
environment: {name: math, curriculum: {unseen: 1, medium: 2, tasks: 50}}
"""


def test_the_file_s_curriculum_reaches_the_plan() -> None:
    made = make_plan(parse_config(FILE), sizes=[None], model_length=512)
    assert made.splits[0].size == 50
    assert made.splits[0].curriculum == rules(shares=(1.0, 0.1, 2.0, 0.1))


@pytest.mark.parametrize(
    ("curriculum", "says"),
    [
        ("{unseen: 0}", "'unseen' is 0, so nothing would ever be measured: give it a share"),
        ("{hard_below: 0.9}", "hard_below (0.9) must be less than easy_above (0.9)"),
        ("{medum: 1}", "environment.curriculum.medum: no such field: did you mean 'medium'?"),
        ("{medium: -1}", "environment.curriculum.medium"),
        ("{}", "environment.curriculum: the split 'train' is endless: give 'tasks', how many to visit"),
    ],
)
def test_a_curriculum_that_makes_no_sense_is_one_line_before_anything_heavy_loads(curriculum: str, says: str) -> None:
    def checked() -> None:
        config = parse_config(f"model: {{path: m}}\nenvironment: {{name: math, curriculum: {curriculum}}}")
        check_split(config.plays[0], LocalClient(MathEnv))

    with pytest.raises(QuintainError) as caught:
        checked()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finite_split_is_taken_whole() -> None:
    config = parse_config(FILE)
    with pytest.raises(QuintainError, match="the split 'train' is finite, it has 12: drop it"):
        check_split(config.plays[0], LocalClient(Graded))
