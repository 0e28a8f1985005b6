"""Several environments in one run: each its share, in an order that a crash does not change, with its own sampling."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.config import dump_config, parse_config
from quintain.config.section import forbidden_changes
from quintain.envs import LocalClient
from quintain.failure import QuintainError
from quintain.rollout.engines.base import Sampling
from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.order import TaskOrder, TaskSplit, task_index
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.process import make_plan
from quintain.trajectory import Group

from ..fake_engine import FakeEngine
from .stage import CHAT, IDENTITY, Words, batch_of, canary, plan, played, weights

SIZES = st.none() | st.integers(1, 9)
SPLITS = st.lists(
    st.builds(TaskSplit, st.just("e"), st.just("train"), SIZES, st.booleans(), st.integers(0, 5)),
    min_size=1,
    max_size=4,
).filter(lambda splits: any(split.weight for split in splits))  # fmt: skip


@given(splits=SPLITS, seed=st.integers(0, 2**31))
def test_each_split_has_its_share_of_any_first_places_and_each_task_once_an_epoch(
    splits: list[TaskSplit], seed: int
) -> None:
    order, total = TaskOrder(splits, seed), sum(split.weight for split in splits)
    places = [order.at(place) for place in range(60)]
    for count in (1, 7, 60):
        seen = Counter(source for source, _ in places[:count])
        assert all(abs(seen[n] - count * split.weight / total) < len(splits) for n, split in enumerate(splits))
    for number, split in enumerate(splits):
        indices = [index for source, index in places if source == number]
        for start in range(0, len(indices), split.size or 60):
            epoch = indices[start : start + (split.size or 60)]
            assert len(set(epoch)) == len(epoch)
    again = TaskOrder(splits, seed)
    assert [again.at(place) for place in reversed(range(60))] == places[::-1]


def test_the_only_environment_of_a_run_has_the_order_that_it_has_alone() -> None:
    order = TaskOrder([TaskSplit("e", "train", 7, True)], 5)
    assert [order.at(place) for place in range(20)] == [(0, task_index(p, 7, seed=5, shuffle=True)) for p in range(20)]


def two(folder: Path, **changes: Any) -> Scheduler:
    plays = (
        played(environment="short", size=5, weight=1.0),
        played(environment="long", size=3, weight=3.0, sampling=Sampling(3, temperature=0.5), max_turns=1),
    )
    made = plan(plays=plays, groups=4, **changes)
    clients = {"short": LocalClient(Words, {}), "long": LocalClient(Words, {"turns": 2})}
    return Scheduler(
        made,
        engine=FakeEngine(words=128),
        chat=CHAT,
        make_env=lambda environment: clients[environment].episode(),
        journal=Journal(folder / "journal.db", members=made.members, identity=IDENTITY),
    )


async def steps(made: Scheduler, folder: Path, numbers: range) -> list[Group]:
    found: list[Group] = []
    for number in numbers:
        version = weights(folder, number)
        await made.publish(version, canary(version), admit=True)
        batch = await batch_of(made, number, 30.0)
        assert batch is not None
        found += batch
    return found


def told(groups: list[Group]) -> list[tuple[str, int, list[list[int]]]]:
    rows = [(group, group.trajectories) for group in groups]
    return [(t[0].environment, group.index, [row.turns[0].output_ids.tolist() for row in t]) for group, t in rows]


async def test_a_run_of_two_environments_that_is_killed_goes_on_as_if_it_never_was(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = two(tmp_path / "whole", max_staleness=1)
    expected = await steps(whole, tmp_path / "whole", range(4))
    await whole.close()
    first = two(tmp_path, max_staleness=1)
    found = await steps(first, tmp_path, range(2))
    await first.close()  # what was under way is lost, as with a kill; the next one begins with the journal alone
    second = two(tmp_path, max_staleness=1)
    found += await steps(second, tmp_path, range(2, 4))
    await second.close()
    assert [(name, index) for name, index, _ in told(found)] == [(name, index) for name, index, _ in told(expected)]
    assert told(found)[:8] == told(expected)[:8]
    assert Counter(name for name, _, _ in told(found)) == {"short": 4, "long": 12}
    assert sorted(index for name, index, _ in told(found) if name == "long") == sorted([0, 1, 2] * 4)
    report = audit(tmp_path / "journal.db")
    assert report.ok, report.problems
    for row in (row for group in found for row in group.trajectories if row.environment == "long"):
        assert len(row.turns) == 1  # its own limit
        assert len(row.turns[0].output_ids) <= 3


async def test_rewards_are_weighed_as_their_environment_says_and_a_name_it_does_not_give_is_a_failure(
    tmp_path: Path,
) -> None:
    plays = (
        played(environment="short", reward_weights={"part": 2.0}),
        played(environment="long", reward_weights={"speed": 1.0}),
    )
    made = plan(plays=plays, groups=2)
    scheduler = Scheduler(
        made,
        engine=FakeEngine(words=128),
        chat=CHAT,
        make_env=lambda _: LocalClient(Words, {}).episode(),
        journal=Journal(tmp_path / "journal.db", members=made.members, identity=IDENTITY),
    )
    groups = {group.trajectories[0].environment: group for group in await steps(scheduler, tmp_path, range(1))}
    await scheduler.close()
    assert [row.reward for row in groups["short"].trajectories] == [0.5] * 3
    failure = groups["long"].trajectories[0].failure
    assert failure is not None
    assert "gives no reward 'speed' (it gives part)" in failure.message


FILE = """
model: {path: m}
environments:
- {name: math, weight: 2, sampling: {temperature: 0.5, max_turns: 1}}
- {name: calculator, split: easy, heldout_split: hard}
"""


def test_the_file_s_list_reaches_the_plan() -> None:
    made = make_plan(parse_config(FILE), sizes=[None, 7], model_length=512)
    assert made.splits == (TaskSplit("math", "train", None, True, 2), TaskSplit("calculator", "easy", 7, True))
    assert (made.plays[0].sampling.temperature, made.plays[0].max_turns) == (0.5, 1)
    assert (made.plays[1].sampling.temperature, made.plays[1].max_turns) == (1.0, 16)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("environments: [{name: math}, {name: math}]", "environments: two are called 'math': give each a title"),
        ("environments: [{name: math, weight: 0}, {name: code, weight: 0}]", "environments: every weight is 0"),
        ("environment: {name: math}\nenvironments: [{name: code}]", "environment and environments are both given"),
        ("environments: [{nam: math}]", "environments.0.nam: no such field: did you mean 'name'?"),
        ("environments: []", "environment: required by grpo, and not given"),
    ],
)
def test_a_list_that_makes_no_sense_is_one_line(file: str, says: str) -> None:
    with pytest.raises(QuintainError) as caught:
        parse_config(f"model: {{path: m}}\n{file}")
    assert says in str(caught.value)


def test_what_an_entry_trains_on_may_not_change_on_resume_and_where_it_runs_may() -> None:
    first = parse_config(FILE)
    moved = parse_config(FILE.replace("{name: math,", "{name: math, workers: 3, lease_s: 9,"))
    assert list(forbidden_changes(first, moved)) == []
    heavier = parse_config(FILE.replace("weight: 2", "weight: 3"))
    (change,) = forbidden_changes(first, heavier)
    assert (change.path, change.before, change.now) == ("environments.0.weight", 2, 3)
    shorter = parse_config(FILE.rpartition("- {")[0])
    assert [change.path for change in forbidden_changes(first, shorter)] == ["environments"]


def test_no_token_of_a_server_is_written_down() -> None:
    config = parse_config(FILE.replace("{name: math,", "{url: 'http://a:1', token: secret,"))
    assert "secret" not in dump_config(config)
    assert parse_config(dump_config(config)).plays[0].url == "http://a:1"


def test_an_environment_given_to_an_evaluation_is_in_place_of_the_file_s_list() -> None:
    config = parse_config(FILE, ["environment={name: code}", "environments=[]"])
    assert [played.label for played in config.plays] == ["code"]
