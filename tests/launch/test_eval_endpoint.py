"""`quintain eval` against an OpenAI-compatible endpoint, from the command line: a fake one on a real socket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintain.cli import main
from quintain.evaluation.episode_log import read_episodes

from .fake_openai import Said, fake_openai
from .runs import ROOT, wait_for
from .warm import Program

ENVS = Path(__file__).with_name("envs_for_eval.py")


def number(request: dict[str, Any]) -> int:
    return int(re.findall(r"\d+", request["messages"][-1]["content"])[0])


def mostly_right(request: dict[str, Any]) -> Said:
    """Right for odd seeds, and always for the numbers below 2."""
    asked = number(request)
    return {"content": str(asked) if asked < 2 or request.get("seed", 0) % 2 else "no idea"}


Process = subprocess.Popen[str] | Program


def start(*flags: str, env: str = "Guess", warm: Path | None = None, **environ: str) -> Process:
    """The command; a slow test gives it a folder `warm` for what it prints, and has it forked."""
    command = ["eval", f"--env={ENVS}:{env}", "--model=fake-model", *flags]
    if warm is not None:
        return Program(command, warm, apart=True, **environ)
    return subprocess.Popen(
        [sys.executable, "-m", "quintain", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )


def finish(process: Process, expect: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == expect, out + err
    return out, err


def figures(*flags: str, **options: Any) -> dict[str, Any]:
    out, _ = finish(start("--json", *flags, **options))
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    del told["elapsed_s"]
    return told


@pytest.mark.slow
def test_an_evaluation_killed_in_the_middle_goes_on_to_the_figures_of_one_that_never_was(tmp_path: Path) -> None:
    ask = ["--samples=6", "--k=1,3,6", "--temperature=1", "--request-seeds", "--concurrency=4"]
    with fake_openai(mostly_right) as fake:
        whole = figures(f"--endpoint={fake.url}", f"--output={tmp_path / 'whole'}", *ask, warm=tmp_path)
        once = len(fake.asked)
    assert once == 48
    assert 0.2 < whole["pass"]["1"]["value"] < whole["pass"]["3"]["value"] < whole["pass"]["6"]["value"] <= 1
    log = tmp_path / "killed" / "episodes.jsonl"
    with fake_openai(mostly_right, limit=20) as fake:
        port = fake.url
        process = start(f"--endpoint={fake.url}", f"--output={tmp_path / 'killed'}", *ask, warm=tmp_path)
        wait_for("twenty episodes", lambda: log.exists() and log.read_bytes().count(b"\n") >= 20)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with log.open("ab") as file:
            file.write(b'{"id": "half a li')  # what a kill in the middle of a write leaves
        fake.limit = None
        fake.release()
        before = len(fake.asked)
        again = start("--json", f"--endpoint={port}", f"--output={tmp_path / 'killed'}", *ask, warm=tmp_path)
        out, err = finish(again)
        assert "going on: 20 of 48 episodes are there already" in err
        assert len(fake.asked) - before == 28
    resumed = json.loads(out.splitlines()[-1])
    del resumed["elapsed_s"]
    assert resumed == whole
    rows, _ = read_episodes(tmp_path / "killed")
    assert sorted((row.index, row.member) for row in rows) == [(i, m) for i in range(8) for m in range(6)]
    told = json.loads((tmp_path / "killed" / "figures.json").read_text())
    assert {**resumed, "elapsed_s": told["elapsed_s"]} == told


@pytest.mark.slow
def test_more_samples_go_on_from_the_fewer_and_another_evaluation_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = f"--output={tmp_path / 'e'}"
    with fake_openai(mostly_right) as fake:
        at = [f"--endpoint={fake.url}", folder, "--temperature=1", "--request-seeds"]
        two = figures(*at, "-n", "4", "--samples=2", warm=tmp_path)
        three = figures(*at, "-n", "5", "--samples=3", warm=tmp_path)
        assert (two["tasks"], two["verified"], three["verified"]) == (4, 8, 15)
        assert len(fake.asked) == 15
        _, err = finish(start(*at[:2], "--temperature=0.5", "--request-seeds", warm=tmp_path), expect=2)
        assert re.fullmatch(r"Error: .* holds another evaluation: its temperature is 1.0, not 0.5; .*\n", err)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        _, err = finish(start(at[0], f"--output={tmp_path / 'other'}", warm=tmp_path), expect=2)
        assert "is no evaluation's folder" in err


@pytest.mark.slow
def test_each_environment_of_a_list_has_figures_of_its_own_and_an_evaluation_of_them_goes_on(tmp_path: Path) -> None:
    listed = [{"name": f"{ENVS}:Guess", "title": "guess"}, {"name": f"{ENVS}:Guess", "title": "broken"}]
    listed[1]["args"] = {"breaks": True}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"model": {"path": "m"}, "environments": listed}))

    def ask(*flags: str) -> tuple[dict[str, Any], str]:
        command = ["eval", str(tmp_path / "e.yaml"), "--model=m", "--json", *flags]
        out, err = finish(Program(command, tmp_path, apart=True))
        return json.loads(out.splitlines()[-1]), err

    with fake_openai(lambda request: {"content": str(number(request))}) as fake:
        flags = [f"--endpoint={fake.url}", f"--output={tmp_path / 'o'}", "--set=rollout.attempts=1"]
        ask(*flags, "-n", "2")
        told, err = ask(*flags)
        assert "going on: 4 of 16 episodes are there already" in err
        assert len(fake.asked) == 16
    assert list(told["environments"]) == ["guess", "broken"]
    guess, broken = told["environments"].values()
    assert (guess["verified"], guess["failed"], guess["mean_reward"]) == (8, 0, 1.5)
    assert (broken["verified"], broken["failures"]) == (7, {"crashed in step": 1})


@pytest.mark.slow
def test_failures_are_no_zeros_and_are_played_again_only_if_asked(tmp_path: Path) -> None:
    broken = {"on": True}

    def flaky(request: dict[str, Any]) -> Said:
        if number(request) == 5 and broken["on"]:
            return 400, {}
        if number(request) == 6 and broken["on"]:
            return {"content": ["not", "text"]}
        return {"content": str(number(request))}

    ask = [f"--output={tmp_path / 'e'}", "--set", "environment.args={breaks: true}", "--set", "rollout.attempts=1"]
    with fake_openai(flaky) as fake:
        at = f"--endpoint={fake.url}"
        told = figures(at, *ask, warm=tmp_path)
        assert (told["mean_reward"], told["pass"]["1"]["value"]) == (1.5, 1.0)
        assert (told["tasks"], told["verified"], told["failed"], told["tasks_with_failures"]) == (8, 5, 3, 3)
        assert told["failures"] == {"crashed in step": 1, "invalid in generate": 1, "rejected in generate": 1}
        broken["on"] = False
        assert figures(at, *ask, warm=tmp_path)["failed"] == 3
        told = figures(at, *ask, "--retry-failed", warm=tmp_path)
        assert (told["verified"], told["failures"]) == (7, {"crashed in step": 1})


def test_a_busy_endpoint_is_asked_again_and_tools_go_both_ways() -> None:
    busy = {"left": 3}

    def model(request: dict[str, Any]) -> Said:
        if busy["left"]:
            busy["left"] -= 1
            return 429, {"retry-after": "0.01"}
        assert [tool["function"]["name"] for tool in request["tools"]] == ["add"]
        last = request["messages"][-1]
        if last["role"] == "tool":
            assert last["tool_call_id"] == request["messages"][-2]["tool_calls"][0]["id"] == "call-1"
            return {"content": last["content"]}
        a, b = re.findall(r"\d+", last["content"])
        call = {"name": "add", "arguments": json.dumps({"a": int(a), "b": int(b)})}
        return {"content": None, "tool_calls": [{"id": "call-1", "type": "function", "function": call}]}

    with fake_openai(model, key="s3cret") as fake:
        told = figures(
            f"--endpoint={fake.url}", "--key-env=THE_KEY", "--max-tokens=99", "--request", "top_p=0.9",
            env="Calculator", THE_KEY="s3cret",
        )  # fmt: skip
        assert (told["mean_reward"], told["verified"], told["failed"]) == (1.0, 3, 0)
        assert told["tokens"]["output"] == 12
        assert fake.keys == {"Bearer s3cret"}
        assert {(row["temperature"], row["max_tokens"], row["top_p"]) for row in fake.asked} == {(0.0, 99, 0.9)}
        _, err = finish(start(f"--endpoint={fake.url}", "--key-env=THE_KEY", THE_KEY="wrong"), expect=2)
        assert "the key in THE_KEY is not accepted" in err


def test_people_get_a_table_with_intervals(tmp_path: Path) -> None:
    with fake_openai(mostly_right) as fake:
        out, _ = finish(start(f"--endpoint={fake.url}", "-n", "4", COLUMNS="150"))
    assert "mean reward 75.0% over 4 verified, 0 failed" in out
    assert re.search(r"pass@1 +│ 50\.0% +│ 15\.0% to 85\.0% +│ 4 tasks", out), out


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    log = tmp_path / "e" / "episodes.jsonl"
    with fake_openai(mostly_right, limit=3) as fake:
        process = start(f"--endpoint={fake.url}", f"--output={tmp_path / 'e'}")
        wait_for("three episodes", lambda: log.exists() and log.read_bytes().count(b"\n") >= 3)
        os.kill(process.pid, signal.SIGINT)
        out, _ = finish(process, expect=130)
    assert "3 episodes are kept in" in " ".join(out.split())


def test_an_endpoint_is_evaluated_without_torch_or_transformers(tmp_path: Path) -> None:
    for name in ("torch", "transformers", "pyarrow", "datasets"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    with fake_openai(mostly_right) as fake:
        assert figures(f"--endpoint={fake.url}", "-n", "2", PYTHONPATH=str(tmp_path))["verified"] == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--endpoint=http://127.0.0.1:9"], "nobody answers at http://127.0.0.1:9"),
        (["--endpoint=127.0.0.1"], "expected an address such as"),
        (["--endpoint=http://127.0.0.1:9", "--key-env=NOT_THERE"], "the environment variable NOT_THERE is not set"),
        (["--endpoint=http://127.0.0.1:9", "--request=n=3"], "that is for quintain to say"),
        (["--samples=2", "--k=4"], "pass@4 needs 1 <= k <= --samples, which is 2"),
        (["--k=many"], "expected whole numbers"),
        (["--request=a=1"], "are for an --endpoint"),
        (["--samples=2", "--temperature=0"], "samples at temperature 0 are all the same"),
    ],
)
def test_a_mistake_is_one_clear_line(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", f"--env={ENVS}:Guess", "--model=fake-model", *flags])
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
