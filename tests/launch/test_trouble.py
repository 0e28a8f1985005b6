"""Bad input and trouble: one clear line, nothing lost, nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from quintain.failure import FailureKind
from quintain.rollout.journal.parquet import read_trajectories

from .runs import DEADLINE_S, ROOT, Run, make_model, wait_for
from .warm import Program


def error_line(output: str) -> str:
    """The one line that says what is wrong; a stack trace anywhere fails the test."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    return line


def with_all_words(run: Run) -> None:
    """Have it train a model of SmolLM2's whole vocabulary."""
    run.set("model.path", str(make_model(run.folder / "large", words=49_152)))


def test_a_run_whose_first_rewards_are_all_the_same_stops_and_shows_one(run: Run) -> None:
    run.set("environment.args", {"mode": "equal"}).set("guards", {"first_step": "stop"})
    code, output = run.start().finish()
    assert code == 1
    assert "every reward of the first step is 0.5 (train-" in error_line(output)
    assert "set guards.first_step: warn" in output


@pytest.mark.parametrize(("server", "staleness"), [("env", 0), ("rollout", 0), ("rollout", 1)])
def test_a_run_goes_on_when_a_server_is_killed(run: Run, server: str, staleness: int) -> None:
    run.set("trainer.max_steps", 5).set("rollout.max_staleness", staleness).start().wait_for_step(2)
    run.kill(run.server(server))
    code, output = run.finish()
    assert code == 0, output
    assert "ended (signal 9): starting it again" in output
    assert run.summary()["steps"] == 5
    run.assert_books_balance(5)
    assert all(row["failures"] == 0 for row in run.metrics())


def test_when_the_trainer_is_killed_nobody_is_left_and_resume_uses_every_prompt_once(run: Run) -> None:
    run.set("trainer.max_steps", 5).start().wait_for_step(2)
    assert run.process is not None
    run.kill(run.process.pid)
    code, _ = run.finish()
    assert code == -signal.SIGKILL
    run.train("--resume")
    run.assert_books_balance(5)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4]


def test_a_server_that_cannot_be_kept_up_stops_the_run_with_its_last_words(run: Run) -> None:
    run.set("trainer.max_steps", 50).set("rollout.restarts", 0).start().wait_for_step(1)
    run.kill(run.server("rollout"))
    code, output = run.finish()
    assert code == 1
    assert "the rollout server ended (signal 9) after 0 restarts" in error_line(output)
    assert "go on with: quintain train" in output
    assert list((run.path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("raises", "crashed in step: RuntimeError: the environment is broken"),
        ("nan", "must be a finite number, not nan"),
    ],
)
def test_an_environment_that_always_fails_stops_the_run_with_what_happened(run: Run, mode: str, says: str) -> None:
    code, output = run.set("environment.args", {"mode": mode}).start().finish()
    assert code == 1
    line = error_line(output)
    assert "all 8 episodes of step 1 failed" in line
    assert says in line


def test_an_environment_that_sometimes_fails_costs_those_trajectories_only(run: Run) -> None:
    run.set("environment.args", {"mode": "raises_sometimes"}).train()
    rows = run.metrics()
    assert sum(row["failures"] for row in rows) > 0
    assert run.summary()["steps"] == 3


def test_an_environment_that_sometimes_hangs_costs_those_trajectories_only(run: Run) -> None:
    run.set("environment.args", {"mode": "hangs_sometimes"}).set("environment.step_timeout_s", 1.0).train()
    kinds = [
        row.trajectory.failure.kind for row in read_trajectories(run.path / "trajectories") if row.trajectory.failure
    ]
    assert FailureKind.TIMEOUT in kinds
    assert sum(row["failures"] for row in run.metrics()) == len(kinds)
    run.assert_books_balance(3)


def test_an_environment_that_blocks_its_process_costs_the_episodes_in_it_an_attempt(run: Run, tmp_path: Path) -> None:
    run.set("environment.args", {"mode": "blocks_once", "marker": str(tmp_path / "blocked")})
    run.set("environment.step_timeout_s", 1.0).train()
    assert (tmp_path / "blocked").exists()
    attempts = [row.trajectory.attempts for row in read_trajectories(run.path / "trajectories")]
    assert max(attempts) == 2
    assert sum(row["failures"] for row in run.metrics()) == 0
    run.assert_books_balance(3)


def test_a_trainer_that_stands_still_finds_no_more_than_it_allowed(run: Run) -> None:
    run.set("trainer.max_steps", 6).set("rollout.max_staleness", 1).start().wait_for_step(2)
    assert run.process is not None
    run.kill(run.process.pid, signal.SIGSTOP)
    try:
        done, per_step = run.steps(), run.config["trainer"]["prompts_per_step"]
        # The weights of a step, or of the one before, are in force; groups may be begun for two batches after them.
        wait_for("the batches that are allowed", lambda: len(run.places()) >= (done + 1) * per_step)
        assert len(run.places()) <= (done + 2) * per_step
    finally:
        run.kill(run.process.pid, signal.SIGCONT)
    code, output = run.finish()
    assert code == 0, output
    run.assert_books_balance(6)


def test_equal_rewards_teach_nothing_and_break_nothing(run: Run) -> None:
    run.set("environment.args", {"mode": "equal"}).train()
    rows = run.metrics()
    assert all(row["frac_reward_zero_std"] == 1.0 and row["rows_trained"] == 0 for row in rows)
    import torch
    from safetensors.torch import load_file

    before, after = load_file(run.model / "model.safetensors"), run.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_empty_completion_is_an_answer(run: Run, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(run.model).eos_token_id
    silent = make_model(tmp_path / "silent", favours=end)
    run.samples().set("model.path", str(silent)).set("environment.args", {"mode": "empty"}).train()
    assert run.metrics()[0]["completions/min_length"] == 1
    assert run.metrics()[0]["reward"] > 0.5


def test_a_prompt_longer_than_the_context_is_said_in_one_line(run: Run) -> None:
    code, output = run.set("environment.args", {"words": 200}).start().finish()
    assert code == 1
    assert "too_long in render: the prompt has" in error_line(output)
    assert "an episode at most 256" in error_line(output)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.path", "./no/such/model", "model.path: no folder 'no/such/model'"),
        ("environment.name", "./no_such_file.py:Env", "no_such_file.py"),
        ("environment.name", "maths", "did you mean 'math'"),
        ("environment.args", {"mod": "ok"}, "mod"),
        ("environment", {"url": "http://127.0.0.1:9"}, "nobody answers at http://127.0.0.1:9"),
        ("trainer.report_to", ["papyrus"], "trainer.report_to: install papyrus, or leave it out"),
        ("trainer.learning_rat", 1, "did you mean 'learning_rate'"),
        ("model.lora", {"target_modules": ["nothing"]}, "model.lora.target_modules"),
        ("trainer.reward_weights", {"style": 1.0}, "the environment gives no reward 'style'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_non_zero_exit_code(run: Run, path: str, value: object, says: str) -> None:
    code, output = run.set(path, value).start().finish()
    assert code in (1, 2), output
    assert says in error_line(output)


@pytest.mark.parametrize(
    ("path", "wrong", "says"),
    [
        ("evaluation", {"num_tasks": 99}, "evaluation.num_tasks: 99 asked for, 'heldout' has 6"),
        ("evaluation", {"split": "train"}, "evaluation.num_tasks: the split 'train' is endless"),
        ("evaluation", {"split": "exam"}, "evaluation.split: "),
        ("environment.split", "exam", "environment.split: "),
    ],
)
def test_a_mistake_in_a_split_is_told_before_anything_heavy_starts(
    run: Run, path: str, wrong: object, says: str
) -> None:
    code, output = run.set(path, wrong).start().finish()
    assert code == 1
    assert says in error_line(output)
    assert "--resume" not in output
    assert "loading" not in output
    assert {file.name for file in (run.path / "logs").iterdir()} == {"environment.log"}


def test_a_mistake_that_is_mended_leaves_the_same_command_good(run: Run) -> None:
    code, output = run.set("evaluation", {"num_tasks": 99}).start().finish()
    assert code == 1, output
    run.set("evaluation", {"num_tasks": 2}).set("trainer.max_steps", 1).train()
    assert run.summary()["heldout_tasks"] == 2


def test_half_a_launcher_of_several_processes_is_refused_in_one_line(run: Run) -> None:
    code, output = run.start(WORLD_SIZE="2").finish()
    assert code == 2, output
    assert "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT are not set" in error_line(output)
    assert not run.path.exists()


def test_resuming_nothing_and_resuming_another_experiment_are_refused(run: Run) -> None:
    code, output = run.start("--resume").finish()
    assert (code, "nothing to resume" in error_line(output)) == (2, True)
    run.train()
    code, output = run.start().finish()
    assert (code, "exists: give another --run-dir" in error_line(output)) == (2, True)
    code, output = run.set("seed", 4).start("--resume").finish()
    assert (code, "seed was 3 and is 4 now" in error_line(output)) == (2, True)


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "quintain", "env", "serve", "math", f"--port={port}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 2
    assert str(port) in error_line(done.stdout + done.stderr)


@pytest.fixture
def small_disk(run: Run) -> Iterator[tuple[int, Path]]:
    """A file system of some megabytes: a process that sees it where the run is to be, and where we see it."""
    run.path.mkdir()
    wrap = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    mounts = f"mount -t tmpfs -o size=160m none {run.path} && echo there && exec sleep 3600"
    with subprocess.Popen([*wrap, "sh", "-c", mounts], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "there\n"
        yield holder.pid, Path(f"/proc/{holder.pid}/root{run.path}")
        holder.kill()


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filled:
        while True:
            filled.write(bytes(4096))


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "on the way"])
def test_a_full_disk_stops_the_run_with_one_line_and_resume_goes_on(
    run: Run, small_disk: tuple[int, Path], at_once: bool
) -> None:
    (holder, disk), ballast = small_disk, small_disk[1] / "ballast"
    file, output = run.folder / "experiment.yaml", ""
    with_all_words(run)  # its checkpoints take some 20 MB
    file.write_text(yaml.safe_dump(run.set("trainer.max_steps", 6).set("trainer.save_steps", 3).config))

    def started(*words: str) -> Program:
        return Program(words, run.folder, mounts_of=holder)

    train = ("train", str(file), f"--run-dir={run.path}/run")
    if at_once:
        with ballast.open("wb") as filled:
            os.posix_fallocate(filled.fileno(), 0, 130 << 20)
    first, metrics = started(*train), disk / "run" / "metrics.jsonl"
    if not at_once:
        wait_for("four steps", lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 4)
        with pytest.raises(OSError, match="No space left"):
            fill(ballast)
    output, code = first.communicate(DEADLINE_S)[0], first.returncode
    assert code == 1, output
    ballast.unlink()
    for words in ((*train, "--resume"), ("rollout", "audit", f"{run.path}/run")):
        program = started(*words)
        output += program.communicate(DEADLINE_S)[0]
        assert program.returncode == 0, output
    assert ("cannot write the checkpoint" if at_once else "cannot write") in error_line(output)
    assert "go on with: quintain train" in output
