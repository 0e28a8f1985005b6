"""`quintain rollout serve` and `quintain rollout audit`, as processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from quintain.failure import FailureError
from quintain.messages import Message
from quintain.rollout.client import RolloutClient
from quintain.task import Task

from .runs import DEADLINE_S, Run, running, wait_for
from .warm import Program

TOKEN = "s3cret"


class Served:
    """A `quintain rollout serve` process on the run's experiment."""

    def __init__(self, run: Run, *flags: str, **environ: str) -> None:
        file = run.folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(run.config))
        self.run = run.path
        command = ["rollout", "serve", str(file), f"--run-dir={run.path}", "--port=0", "--json", *flags]
        self.process = Program(command, run.folder, apart=True, **environ)
        printed = self.process.out
        wait_for("its ready line", lambda: "\n" in printed.read_text() or self.process.poll() is not None)
        line = printed.read_text()
        assert line, self.process.err.read_text()
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int) -> int:
        """Signal it; its exit code. None of its children may be left."""
        children = self.children()
        os.kill(self.process.pid, number)
        code = self.process.wait(60)
        wait_for("the end of its children", lambda: not any(running(child) for child in children))
        return code


@pytest.fixture
def serving(run: Run) -> Iterator[list[Served]]:
    """Servers started by the test, which it may have ended."""
    started: list[Served] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def quintain(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    process = Program(words, folder, apart=True)
    return subprocess.CompletedProcess(words, process.wait(DEADLINE_S), *process.communicate())


def test_a_server_of_its_own_runs_tasks_survives_its_environment_s_death_and_leaves_nothing(
    run: Run, serving: list[Served]
) -> None:
    served = Served(run, f"--token={TOKEN}")
    serving.append(served)
    assert (served.ready["event"], served.ready["run"]) == ("ready", str(run.path))
    assert httpx.get(f"{served.url}/v1/stats").status_code == 401
    with RolloutClient(served.url, TOKEN) as client:
        groups = client.run_tasks("heldout", range(3), samples=2, temperature=1.0)
        assert [len(group.trajectories) for group in groups] == [2, 2, 2]
        assert all(row.reward is not None for group in groups for row in group.trajectories)
        (mine,) = client.run_tasks(tasks=[Task("mine", (Message("user", "Say it."),), reference=1)])
        assert mine.trajectories[0].task == "mine"

        (environment,) = [child for child in served.children() if "serve" in child.cmdline()]
        environment.kill()
        again = client.run_tasks("heldout", range(3), samples=2, temperature=1.0)
        assert all(row.failure is None for group in again for row in group.trajectories)

        client.admit(0)  # training episodes with the weights that are there
        assert len(client.batch(0)) == run.config["trainer"]["prompts_per_step"]
        report = client.drain()
        assert (report.drained, report.consumed) == (True, run.config["trainer"]["prompts_per_step"])
        assert "quintain_rollout_draining 1" in client.metrics()
    assert served.end(signal.SIGTERM) == 0
    assert "Traceback" not in served.process.err.read_text()
    assert list((run.path / "trajectories").iterdir())

    audited = quintain(run.folder, "rollout", "audit", str(run.path))
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert "it balances" in audited.stdout
    with sqlite3.connect(run.path / "journal.db") as db:
        db.execute("DELETE FROM trajectories WHERE place = 0 AND member = 1")
    audited = quintain(run.folder, "rollout", "audit", str(run.path), "--json")
    assert audited.returncode == 1, audited.stdout
    report = json.loads(audited.stdout)
    assert not report["ok"]
    assert report["problems"]


def test_an_agent_s_rewarded_session_outlives_a_killed_server(run: Run, serving: list[Served]) -> None:
    served = Served(run)
    serving.append(served)

    def play(url: str, reward: float) -> None:
        session = httpx.post(f"{url}/sessions", json={"task": "chat"}).json()
        body = {"model": session["model"], "messages": [{"role": "user", "content": "Say something."}]}
        answer = httpx.post(f"{session['base_url']}/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        done = httpx.post(f"{url}/sessions/{session['id']}/reward", json={"reward": reward})
        assert done.status_code == 200, done.text

    play(served.url, 0.25)
    assert served.end(signal.SIGKILL) == -signal.SIGKILL

    served = Served(run, "--resume")
    serving.append(served)
    play(served.url, 0.75)
    with RolloutClient(served.url) as client:
        stream = client.sessions()
        (first, before), (second, after) = next(stream), next(stream)
        assert [(first, before.reward), (second, after.reward)] == [(1, 0.25), (2, 0.75)]
        assert len(before.turns[0].output_ids) == len(before.turns[0].logprobs) > 0
        assert next(client.sessions(1))[1].id == after.id
        metrics = client.metrics()
        assert 'quintain_rollout_sessions_ended_total{how="rewarded"} 1' in metrics
        client.drain()
        assert httpx.post(f"{served.url}/sessions", json={}).status_code == 503
    assert served.end(signal.SIGINT) == 0


def test_an_environment_that_cannot_be_kept_up_ends_the_server_with_one_line(run: Run, serving: list[Served]) -> None:
    run.set("rollout.restarts", 0)
    served = Served(run)
    serving.append(served)
    (environment,) = [child for child in served.children() if "serve" in child.cmdline()]
    environment.kill()
    assert served.process.wait(60) == 2
    (line,) = [line for line in served.process.err.read_text().splitlines() if line.startswith("Error: ")]
    assert "the environment server ended (signal 9) after 0 restarts" in line


def test_what_cannot_begin_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    file = run.folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(run.config))
    serve = ["rollout", "serve", str(file), "--port=0", f"--run-dir={run.path}"]
    for flags, says in [
        (["--host=0.0.0.0"], "refusing to listen on 0.0.0.0 without a token"),
        (["--token-file=/no/such/file"], "cannot read the tokens in /no/such/file"),
        (["--set=rollout.max_concurrencies=3"], "did you mean 'max_concurrency'"),
        (["--resume"], "nothing to resume"),
        (["--set=model.path=./no/such/model"], "no folder 'no/such/model'"),
    ]:
        done = quintain(run.folder, *serve, *flags)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert says in line
        assert "Traceback" not in done.stderr
        assert not run.path.exists()
    done = quintain(run.folder, *serve, "--set=environment.split=exam")
    assert done.returncode == 2
    assert "Error: environment.split: " in done.stderr
    assert "starting the engine" not in done.stderr
    done = quintain(run.folder, "rollout", "audit", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_a_client_of_a_server_that_is_not_there_hears_so() -> None:
    with (
        RolloutClient("http://127.0.0.1:9", patience_s=0) as client,
        pytest.raises(FailureError, match="no answer from the rollout server"),
    ):
        client.drain()
