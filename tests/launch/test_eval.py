"""`quintain eval` with the run's own engine: real servers, a tiny random model, and real kills."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from quintain.evaluation.episode_log import read_episodes

from .runs import ROOT, running, wait_for
from .warm import Program

ENVS = Path(__file__).with_name("envs_for_tests.py")
SMALL = ["rollout.dtype=float32", "rollout.max_completion_length=32", "rollout.threads=1", "rollout.max_batch=2"]
ASK = ["--samples=4", "--k=2", "--pass-at=0.845", "--temperature=1", "--seed=7"]


def start(model: Path, output: Path, *flags: str) -> Program:
    sets = [f"--set={field}" for field in SMALL]
    command = ["eval", f"--env={ENVS}:Letters", f"--model={model}", *ASK, *sets, f"--output={output}", "--json", *flags]
    return Program(command, output.parent, apart=True)


def figures(process: Program) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    del told["elapsed_s"]
    return told, err


def servers(process: Program) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def said(folder: Path) -> dict[tuple[int, int], list[int]]:
    rows, _ = read_episodes(folder)
    return {(row.index, row.member): row.turns[0].output_ids.tolist() for row in rows}


def pass_at_two(folder: Path) -> float:
    """The share of all pairs of samples of one task that hold a pass: all tasks have as many."""
    rows, _ = read_episodes(folder)
    tasks = [[(row.reward or 0.0) >= 0.845 for row in rows if row.index == index] for index in range(6)]
    pairs = [any(pair) for task in tasks for pair in itertools.combinations(task, 2)]
    return sum(pairs) / len(pairs)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_or_loses_its_server_ends_with_the_figures_of_one_that_never_was(
    tmp_path: Path, tiny_model: Path
) -> None:
    whole, said_meanwhile = figures(start(tiny_model, tmp_path / "whole"))
    assert said_meanwhile.splitlines()[:2] == ["starting the environment server", "playing episodes"]
    assert (whole["tasks"], whole["verified"], whole["failed"]) == (6, 24, 0)
    assert 0 < whole["mean_reward"] < 1
    assert whole["pass"]["1"]["value"] < whole["pass"]["2"]["value"]
    assert whole["pass"]["2"]["value"] == pytest.approx(pass_at_two(tmp_path / "whole"))
    tokens = sum(len(ids) for ids in said(tmp_path / "whole").values())
    assert whole["tokens"]["output"] == tokens
    assert len({tuple(ids) for ids in said(tmp_path / "whole").values()}) > 12  # samples of a task differ

    log = tmp_path / "killed" / "episodes.jsonl"
    process = start(tiny_model, tmp_path / "killed")
    wait_for("five episodes", lambda: log.exists() and log.read_bytes().count(b"\n") >= 5)
    left = servers(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for("the end of its servers", lambda: not any(running(server) for server in left))
    assert 5 <= len(said(tmp_path / "killed")) < 24
    resumed, err = figures(start(tiny_model, tmp_path / "killed"))
    assert "episodes are there already" in err
    assert resumed == whole
    assert said(tmp_path / "killed") == said(tmp_path / "whole")

    log = tmp_path / "lost" / "episodes.jsonl"
    process = start(tiny_model, tmp_path / "lost")
    wait_for("five episodes", lambda: log.exists() and log.read_bytes().count(b"\n") >= 5)
    (server,) = (child for child in servers(process) if "quintain.rollout.server.process" in child.cmdline())
    server.kill()
    assert figures(process)[0] == whole


@pytest.mark.slow
def test_a_list_of_environments_is_played_by_one_server_each_by_its_name(tmp_path: Path, tiny_model: Path) -> None:
    listed = [{"name": f"{ENVS}:Letters", "title": title} for title in ("one", "other")]
    engine = {"engine": f"{ROOT / 'tests' / 'fake_engine.py'}:of_run", "dtype": "float32", "max_completion_length": 8}
    config = {"model": {"path": str(tiny_model)}, "environments": listed, "rollout": engine}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    command = ["eval", str(tmp_path / "e.yaml"), "--json", f"--output={tmp_path / 'o'}"]
    told, _ = figures(Program(command, tmp_path, apart=True))
    assert {name: each["verified"] for name, each in told["environments"].items()} == {"one": 6, "other": 6}
    rows, _ = read_episodes(tmp_path / "o")
    assert sorted((row.environment, row.index) for row in rows) == [
        (name, index) for name in ("one", "other") for index in range(6)
    ]


@pytest.mark.slow
def test_a_folder_is_one_models_and_one_process_at_a_time(tmp_path: Path, tiny_model: Path) -> None:
    from quintain.evaluation.episode_log import EpisodeLog

    with EpisodeLog(tmp_path / "e", {}):
        process = start(tiny_model, tmp_path / "e")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is in use by another evaluation" in " ".join(err.split())
    with EpisodeLog(tmp_path / "e", {"model": {"path": str(tiny_model), "files": "0123456789abcdef"}}):
        pass
    process = start(tiny_model, tmp_path / "e")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "holds another evaluation: its model is" in " ".join(err.split())
