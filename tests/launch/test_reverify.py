"""`quintain reverify`: stored trajectories scored again, from the command line."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintain.arrays import as_floats, as_ints
from quintain.cli import main
from quintain.codec import pack
from quintain.evaluation.episode_log import EpisodeLog
from quintain.failure import Failure, FailureKind, Stage
from quintain.messages import assistant, user
from quintain.rollout.journal.parquet import read_trajectories, write_trajectories
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

ENVS = Path(__file__).with_name("envs_for_eval.py")
VERIFIERS = Path(__file__).with_name("verifiers_for_tests.py")


def trajectory(place: int, index: int, answer: str, reward: float | None) -> Trajectory:
    turn = Turn(
        as_ints([1]), as_ints([2]), as_floats([-0.5]), Finish.STOP, (VersionSpan(0, 0, 1),), assistant(answer), (),
        reward or 0.0,
    )  # fmt: skip
    failure = Failure.of(FailureKind.TIMEOUT, Stage.GENERATE, "slow") if reward is None else None
    ending = Ending.TERMINATED if failure is None else Ending.FAILED
    rewards = {} if reward is None else {"right": reward, "brief": 0.0}
    task = f"heldout/{index}"
    return Trajectory(
        f"{place:08d}/000", f"{place:08d}", task, index, 0, 1, (turn,), ending, reward, failure, rewards, (user("?"),)
    )


ROWS = [
    trajectory(0, 0, "0", 1.0),
    trajectory(1, 1, "the answer is 1", 0.0),
    trajectory(2, 2, "7", 1.0),
    trajectory(3, 3, "3 apples", 0.0),
    trajectory(4, 4, "", None),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of `Guess` with two steps; task n's reference is "n"."""
    folder = tmp_path / "run-1"
    for step, rows in enumerate((ROWS[:2], ROWS[2:])):
        write_trajectories(folder / "trajectories", step, [Group(row.group, row.index, (row,)) for row in rows])
    config = {"model": {"path": "m"}, "environment": {"name": f"{ENVS}:Guess"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def reverify(*args: object, expect: int = 0) -> str:
    """What the command prints, on standard output where it ends well, else on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["reverify", *map(str, args)])
    assert ended.value.code == expect, out.getvalue() + err.getvalue()
    return out.getvalue() if expect == 0 else err.getvalue()


def figures(*args: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(reverify(*args, "--json"))
    return told


def test_what_changed_is_counted_shown_and_written_beside_the_old_files(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = figures(run, "--verifier", f"{VERIFIERS}:starts_alike", "--write")
    assert (told["trajectories"], told["rescored"], told["failed_before"], told["failures_now"]) == (5, 4, 1, 0)
    assert told["confusion"] == {
        "pass": {"pass": 1, "zero": 1},
        "zero": {"zero": 1, "pass": 1},
        "failure": {"not rescored": 1},
    }
    assert (told["mean_before"]["value"], told["mean_after"]["value"], told["difference"]["value"]) == (0.5, 0.5, 0.0)
    low, high = told["difference"]["ci95"]
    assert low < 0 < high
    changed = {row["task"]: (row["answer"], row["before"], row["after"]) for row in told["examples"]}
    assert changed == {"heldout/2": ("7", 1.0, 0.0), "heldout/3": ("3 apples", 0.0, 1.0)}
    assert told["changed"] == 2
    assert told["written"] == str(run / "trajectories-starts_alike")
    assert all(path.read_bytes() == data for path, data in before.items())
    new = [(row.step, row.trajectory) for row in read_trajectories(run / "trajectories-starts_alike")]
    assert [(step, row.reward) for step, row in new] == [(0, 1.0), (0, 0.0), (1, 0.0), (1, 1.0), (1, None)]
    assert pack(new[4][1]) == pack(ROWS[4])
    row = new[2][1]
    assert row.info["outcome"] == "wrong"
    assert (row.rewards, row.turns[0].reward, row.info["reverified"]["before"]["reward"]) == (
        {"starts_alike": 0.0},
        0.0,
        1.0,
    )
    says = reverify(run, "--verifier", f"{VERIFIERS}:starts_alike", "--write", expect=2)
    assert "exists: give --name, or remove it" in says


def test_trajectories_of_several_environments_are_judged_by_the_references_of_their_own(run: Path) -> None:
    listed = [{"name": f"{ENVS}:Guess", "title": "one"}, {"name": f"{ENVS}:Calculator", "title": "other"}]
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"path": "m"}, "environments": listed}))
    rows = [
        replace(trajectory(place, 0, answer, 0.0), environment=title)  # the first answers are 0 and 0 + 1
        for place, (title, answer) in enumerate([("one", "0"), ("one", "1"), ("other", "1"), ("other", "0")])
    ]
    write_trajectories(run / "trajectories", 2, [Group(row.group, row.index, (row,)) for row in rows])
    for step in (0, 1):
        (run / "trajectories" / f"step-{step:06d}.parquet").unlink()
    told = figures(run, "--verifier=exact")
    assert [row["id"] for row in told["examples"]] == ["00000000/000", "00000002/000"]
    assert figures(run, "--verifier=exact", "--only=other")["rescored"] == 2
    assert "they are of one, other" in reverify(run, "--verifier=exact", "--only=third", expect=2)


def test_people_get_the_tables(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    out = reverify(run, "--verifier", "math")
    assert re.search(r"pass +│ 1 +│ 1 +│ 0", out), out
    assert re.search(r"[1-3] of 4 rescored changed; mean 0\.5000 before, 0\.\d+ now \(.*95 % interval", out), out
    assert "0 now without a verdict, 1 had failed before" in out
    assert re.search(r"step 1, 00000002/000 +│ 7 +│ 1 +│ 0 \(wrong\)", out), out


def test_a_verifier_that_breaks_makes_a_failure_and_no_zero(run: Path, tmp_path: Path) -> None:
    write_trajectories(run / "trajectories", 2, [Group("g", 5, (trajectory(5, 5, "boom", 1.0),))])
    told = figures(run, "--verifier", f"{VERIFIERS}:starts_alike", "--write", "--name", "again")
    assert (told["failures_now"], told["mean_before"]["samples"]) == (1, 4)
    assert told["confusion"]["pass"] == {"pass": 1, "zero": 1, "failure": 1}
    broken = list(read_trajectories(run / "trajectories-again"))[-1].trajectory
    assert (broken.reward, broken.ending, broken.rewards) == (None, Ending.FAILED, {})
    assert broken.failure is not None
    assert "the verifier is broken" in broken.failure.message


@pytest.mark.parametrize(
    ("spec", "options", "mean"),
    [
        (f"{VERIFIERS}:Always", ["--option", "score=0.25"], 0.25),
        (f"{VERIFIERS}:made", [], 0.5),
        ("exact", [], 0.25),
        ("regex", ["--option", r"pattern='(\d)'"], None),
    ],
)
def test_verifiers_come_by_name_from_a_file_and_with_options(
    run: Path, spec: str, options: list[str], mean: float | None
) -> None:
    told = figures(run, "--verifier", spec, *options)
    assert told["rescored"] == 4
    assert mean is None or told["mean_after"]["value"] == mean


def test_a_rubric_comes_from_a_yaml_file(run: Path, tmp_path: Path) -> None:
    rubric = {
        "mode": "weighted_sum",
        "parts": [
            {"verifier": "exact", "weight": 3},
            {"verifier": "length", "weight": 1, "options": {"unit": "characters", "maximum": 4, "cache": 0}},
        ],
    }
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(rubric))
    told = figures(run, "--verifier", tmp_path / "rubric.yaml")
    assert told["mean_after"]["value"] == pytest.approx((1.0 + 0.0 + 0.25 + 0.0) / 4)
    assert told["confusion"]["pass"] == {"pass": 1, "partial": 1}


def test_an_evaluation_s_folder_and_a_single_file_are_read_too(run: Path, tmp_path: Path) -> None:
    with EpisodeLog(tmp_path / "eval", {}) as log:
        for row in ROWS:
            log.add(row)
    (tmp_path / "eval" / "config.yaml").write_text((run / "config.yaml").read_text())
    assert figures(tmp_path / "eval", "--verifier", "exact")["rescored"] == 4
    one = figures(run / "trajectories" / "step-000000.parquet", "--verifier", "exact", "--write")
    assert (one["rescored"], one["written"]) == (2, str(run / "trajectories-exact"))


def test_part_of_the_reward_and_of_the_reference_can_be_compared(run: Path) -> None:
    assert figures(run, "--verifier", "exact", "--reward", "brief")["mean_before"]["value"] == 0.0
    assert "no such reward (its rewards: brief, right)" in reverify(
        run, "--verifier", "exact", "--reward", "style", expect=2
    )
    assert "has no such entry" in reverify(run, "--verifier", "exact", "--reference-key", "x", expect=2)


@pytest.mark.parametrize(
    ("config", "flags", "says"),
    [
        (None, [], "has no config.yaml that names its environment: give --env"),
        ({"url": "http://127.0.0.1:9"}, [], "a server never tells references: give --env"),
        ({"name": f"{ENVS}:Calculator"}, [], "has no task 3 in the split 'heldout'"),
        ({"name": f"{ENVS}:Guess"}, ["--split", "tset"], "has no split 'tset'"),
        ({"name": f"{ENVS}:Guess"}, ["--verifier", "exakt"], "there is no verifier 'exakt'"),
        ({"name": f"{ENVS}:Guess"}, ["--verifier", f"{VERIFIERS}:none"], "has no 'none'"),
        ({"name": f"{ENVS}:Guess"}, ["--verifier", f"{VERIFIERS}:number"], "is a int: expected a Verifier"),
        ({"name": f"{ENVS}:Guess"}, ["--verifier", "nowhere.yaml"], "cannot read nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_clear_line(run: Path, config: Any, flags: list[str], says: str) -> None:
    if config is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"path": "m"}, "environment": config}))
    err = reverify(run, "--verifier", "exact", *flags, expect=2)
    assert says in err
    assert "Traceback" not in err


def test_a_run_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert "give a run's folder" in reverify(tmp_path / "nothing", "--verifier", "exact", expect=2)
