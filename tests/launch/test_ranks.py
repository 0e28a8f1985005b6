"""Whole runs whose model is trained by two processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from .runs import DEADLINE_S, ROOT, Run, wait_for

WAYS = ("ddp", "fsdp")
pytestmark = pytest.mark.timeout(900)  # runs of three processes with torch, up to three of them in a test


def with_ranks(run: Run, way: str) -> Run:
    return run.set("trainer.processes", 2).set("trainer.parallel", way)


def follower(run: Run) -> psutil.Process:
    """The process of rank 1."""
    assert run.process is not None
    found: list[psutil.Process] = []

    def there() -> bool:
        children = psutil.Process(run.process.pid).children()  # type: ignore[union-attr]
        found[:] = [child for child in children if "quintain.launch.ranks" in child.cmdline()]
        return bool(found)

    wait_for("rank 1", there)
    return found[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_two_processes_train_samples_proven_weights_and_resumes_as_if_never_stopped(
    run: Run, tmp_path: Path, way: str
) -> None:
    with_ranks(run.samples(), way).train()
    run.assert_books_balance(3)
    (tmp_path / "second").mkdir()
    stopped = with_ranks(Run(tmp_path / "second", run.model).samples(), way)
    stopped.start().wait_for_step(1)
    stopped.kill(stopped.process.pid, 9)  # type: ignore[union-attr]
    stopped.finish()
    stopped.train("--resume")
    stopped.assert_books_balance(3)
    for name, weight in run.weights().items():
        assert torch.equal(weight, stopped.weights()[name]), name


def test_a_run_goes_on_with_another_number_of_processes(run: Run, tmp_path: Path) -> None:
    with_ranks(run, "fsdp").set("trainer.lr_scheduler_type", "constant").set("trainer.max_steps", 1).train()
    run.set("trainer.processes", 1).set("trainer.parallel", "ddp").set("trainer.max_steps", 2).train("--resume")
    with_ranks(run, "ddp").set("trainer.max_steps", 3).train("--resume")
    run.assert_books_balance(3)


def test_a_rank_that_is_killed_ends_the_run_with_its_name_and_how_to_go_on(run: Run) -> None:
    with_ranks(run, "ddp").set("trainer.max_steps", 50).start().wait_for_step(1)
    run.kill(follower(run).pid)
    code, output = run.finish()
    assert code == 1
    said = " ".join(output.split())
    assert re.search(r"Error: the trainer's rank 1 ended \(signal 9\)", said), output
    assert "--resume" in said


def test_ctrl_c_stops_all_ranks_at_a_whole_step(run: Run) -> None:
    with_ranks(run, "fsdp").set("trainer.max_steps", 50).start().wait_for_step(1)
    run.kill(run.process.pid, 2)  # type: ignore[union-attr]
    code, output = run.finish()
    assert code == 130, output
    assert "stopped after step" in output


@pytest.mark.parametrize("other", [False, True], ids=["same", "another experiment on rank 1"])
def test_torchrun_may_start_the_ranks(run: Run, other: bool) -> None:
    file = run.set("trainer.parallel", "fsdp").folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(run.config))
    rank = ["-m", "quintain", "train", str(file), "--run-dir", str(run.path)]
    if other:
        (run.folder / "one.py").write_text(
            "import os, sys\n"
            f"extra = ['--set', 'trainer.learning_rate=0.5'] if os.environ['RANK'] == '1' else []\n"
            f"os.execv(sys.executable, [sys.executable, *{rank}, *extra])\n"
        )
        rank = [str(run.folder / "one.py")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *rank]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)
    if other:
        assert done.returncode != 0
        said = " ".join((done.stdout + done.stderr).split())
        assert (
            "rank 1 was started with another experiment than rank 0: trainer.learning_rate was 0.01 and is 0.5" in said
        )
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        run.assert_books_balance(3)


@pytest.mark.parametrize(
    ("processes", "parallel", "optim", "said"),
    [
        (4096, "ddp", "adamw", r"trainer\.processes: 4096 asked for, this machine has \d+ cores: lower it"),
        (
            2,
            "fsdp",
            "adafactor",
            r"trainer: optim: adafactor needs whole matrices, and fsdp shards them: use adamw, or ddp",
        ),
        (
            1,
            "fsdp",
            "adamw",
            r"trainer\.parallel: fsdp shards a model over processes: set trainer\.processes, at least 2",
        ),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_anything_starts(
    run: Run, processes: int, parallel: str, optim: str, said: str
) -> None:
    run.set("trainer.processes", processes).set("trainer.parallel", parallel).set("trainer.optim", optim)
    code, output = run.start().finish()
    assert code == 2
    assert re.search(said, " ".join(output.split())), output
    assert not run.path.exists()
