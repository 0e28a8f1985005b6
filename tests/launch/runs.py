"""Whole runs: real processes, real sockets, a tiny random model with a real tokenizer.

They sample with the fake engine, whose numbers are not the model's: what a test says of sampling, of the weights that
are published, or of an answer to a prompt, it says after `run.samples()`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from quintain.config import load_config
from quintain.launch.train import train
from quintain.rollout.journal.audit import audit

from ..tiny_llama import tiny_llama
from .warm import ROOT, Program

DEADLINE_S = 180.0
WORDS = 2048


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    """Return when `holds()`; fail where it does not within a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


def make_model(folder: Path, *, favours: int | None = None, length: int = 256, words: int = WORDS) -> Path:
    """Save the tiny model; with `favours`, it samples that token nearly always.

    Its tokenizer is SmolLM2's with the first `words` only: text is read and written as well, and every process that
    reads a vocabulary, samples from it or saves a row for each of its words is done much sooner.
    """
    import torch
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "models" / "SmolLM2-135M-Instruct").glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(ROOT / "models" / "SmolLM2-135M-Instruct" / "chat_template.jinja", folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    bpe = said["model"]
    bpe["vocab"] = {word: number for word, number in bpe["vocab"].items() if number < words}
    bpe["merges"] = [pair for pair in bpe["merges"] if "".join(pair) in bpe["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    tied = favours is None
    model = tiny_llama(
        0, words=len(tokenizer), length=length, intermediate_size=64, tie_word_embeddings=tied, **special
    )
    if favours is not None:
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.model.norm.weight.fill_(1.0)
            model.model.embed_tokens.weight.fill_(1.0)
            model.lm_head.weight[favours] = 1.0
    model.save_pretrained(folder)
    return folder


def stage(run: Path, model: dict[str, Any], data: Path, **trainer: Any) -> None:
    """Train `model` on `data` into the folder `run`, from a YAML file, in this process."""
    config = {
        "model": {"compute_dtype": "float32"} | model,
        "dataset": str(data),
        "rollout": {"dtype": "float32"},
        "trainer": {"threads": 1} | trainer,
    }
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run.with_suffix(".cache")))
        assert train(load_config(file), resume=False, run_dir=run, as_json=False) == 0


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "checkpoints").glob("step-*"))


class Run:
    """A `quintain train` process in a folder of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.path = folder / "run"
        self.process: Program | None = None
        self.seen: set[int] = set()
        self.config: dict[str, Any] = {
            "name": "t",
            "seed": 3,
            "model": {"path": str(model), "compute_dtype": "float32"},
            "environment": {"name": f"{Path(__file__).with_name('envs_for_tests.py')}:Letters"},
            "rollout": {
                "engine": f"{ROOT / 'tests' / 'fake_engine.py'}:of_run", "canary_tolerance": 1e6, "dtype": "float32",
                "max_completion_length": 8, "threads": 1,
            },
            "guards": {"first_step": "warn"},
            "trainer": {
                "max_steps": 3, "prompts_per_step": 2, "num_generations": 4, "learning_rate": 0.01, "threads": 1,
                "save_steps": 1,
            },
        }  # fmt: skip

    def set(self, path: str, value: Any) -> Run:
        """Change one field of the experiment."""
        *parents, leaf = path.split(".")
        at = self.config
        for part in parents:
            at = at.setdefault(part, {})
        at[leaf] = value
        return self

    def samples(self) -> Run:
        """Sample from the model itself, which the canary proves."""
        return self.set("rollout.engine", "transformers").set("rollout.canary_tolerance", None)

    def start(self, *flags: str, **environ: str) -> Run:
        file = self.folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(self.config))
        self.process = Program(["train", str(file), f"--run-dir={self.path}", *flags], self.folder, **environ)
        return self

    def finish(self) -> tuple[int, str]:
        """Wait for the end; (exit code, output). Every process of the run must be gone then."""
        assert self.process is not None
        self.note_children()
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        self.assert_nothing_left()
        return self.process.returncode, output

    def train(self, *flags: str) -> str:
        """Run to a good end; the output."""
        code, output = self.start(*flags).finish()
        assert code == 0, output
        return output

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self.note_children()
        os.kill(pid, number)

    def note_children(self) -> None:
        """Remember the processes of the run, to see later that none is left."""
        assert self.process is not None
        try:
            parent = psutil.Process(self.process.pid)
            self.seen |= {self.process.pid} | {child.pid for child in parent.children(recursive=True)}
        except psutil.NoSuchProcess:
            pass

    def assert_nothing_left(self) -> None:
        def alive() -> list[str]:
            return [
                name(p)
                for p in psutil.process_iter()
                if str(self.path) in name(p) or (p.pid in self.seen and running(p))
            ]

        wait_for(f"the end of {alive()}", lambda: not alive())
        assert not list(Path("/dev/shm").glob(f"quintain-weights-{self.process.pid}-*"))

    def server(self, log: str) -> int:
        """The process id of the rollout server ("rollout") or of the environment server ("env")."""
        assert self.process is not None
        words = {"rollout": "quintain.rollout.server.process", "env": "serve"}[log]
        found: list[int] = []

        def there() -> bool:
            parent = psutil.Process(self.process.pid)  # type: ignore[union-attr]
            found[:] = [child.pid for child in parent.children() if words in child.cmdline()]
            return bool(found)

        wait_for(f"the {log} server", there)
        return found[0]

    def steps(self) -> int:
        """Training steps in metrics.jsonl."""
        return len([row for row in self.metrics() if row["kind"] == "train"])

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for_step(self, count: int) -> None:
        """Return when `count` steps are done."""
        assert self.process is not None

        def done() -> bool:
            assert self.process is not None
            assert self.process.poll() is None or self.steps() >= count, self.process.communicate()[0]
            return self.steps() >= count

        wait_for(f"step {count}", done)
        self.note_children()

    def summary(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return data

    def resolved(self) -> dict[str, Any]:
        """The run's own config.yaml."""
        data: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text())
        return data

    def weights(self) -> dict[str, Any]:
        """The newest checkpoint's tensors."""
        from safetensors.torch import load_file

        folder = sorted((self.path / "checkpoints").glob("step-*"))[-1]
        tensors: dict[str, Any] = load_file(folder / "model.safetensors")
        return tensors

    def places(self) -> list[tuple[int, int, int | None]]:
        """(place, task index, step) of every group in the journal."""
        with sqlite3.connect(self.path / "journal.db") as db:
            return db.execute("SELECT place, task_index, consumed_at FROM groups ORDER BY place").fetchall()

    def assert_books_balance(self, steps: int) -> None:
        """Every place once, each consumed at its step, none skipped; and an audit finds nothing wrong."""
        per_step = self.config["trainer"]["prompts_per_step"]
        consumed = [(place, index, step) for place, index, step in self.places() if step is not None]
        assert consumed == [(place, place, place // per_step) for place in range(steps * per_step)]
        report = audit(self.path / "journal.db")
        assert report.ok, report.problems
        assert (report.steps, report.consumed) == (steps, steps * per_step)


def name(process: psutil.Process) -> str:
    try:
        return f"{process.pid} " + " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
