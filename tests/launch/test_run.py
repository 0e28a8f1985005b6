"""Whole runs, from the command line to the summary."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quintain.rollout.journal.audit import audit
from quintain.rollout.journal.parquet import read_trajectories
from quintain.trajectory import to_segments

from .runs import DEADLINE_S, ROOT, Run, make_model
from .warm import Program


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_it_promises(run: Run) -> None:
    run.samples().set("evaluation", {"split": "heldout", "eval_steps": 2}).set("trainer.report_to", ["tensorboard"])
    output = run.train()
    summary = run.summary()
    assert {"heldout_before", "heldout_after", "train_wall_s", "steps", "seed", "versions"} <= summary.keys()
    assert (summary["steps"], summary["versions"], summary["seed"], summary["heldout_tasks"]) == (3, 3, 3, 6)
    assert 0 <= summary["heldout_before"] <= 1
    present = {path.name for path in run.path.iterdir()}
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "curve.png",
        "trajectories",
        "journal.db",
        "checkpoints",
        "logs",
    }
    assert expected <= present
    run.assert_books_balance(3)
    chosen = run.resolved()["rollout"]
    assert (chosen["tool_calls"], chosen["thinking"]) == ("hermes", None)
    assert len(chosen["stop_ids"]) >= 1
    rows = run.metrics()
    assert [row["step"] for row in rows if row["kind"] == "train"] == [0, 1, 2]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 2, 3]
    train = next(row for row in rows if row["kind"] == "train")
    for figure in (
        "reward",
        "reward_std",
        "loss",
        "grad_norm",
        "entropy",
        "completions/mean_length",
        "step_time",
    ):
        assert math.isfinite(train[figure]), figure
    assert train["sampling/sampling_logp_difference/max"] < 1e-3
    (events,) = (run.path / "logs").rglob("events.out.tfevents.*")
    assert b"completions/mean_length" in events.read_bytes()
    assert "Held-out tasks" in output
    assert "Sample answers" in output


NOTES = """
import json, os, sys, urllib.request
messages = [{"role": "user", "content": sys.argv[1]}]
for _ in range(2):
    body = json.dumps({"model": "policy", "messages": messages}).encode()
    answer = json.load(urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body))
    messages += [answer["choices"][0]["message"], {"role": "user", "content": "Again."}]
    open("said.txt", "a").write(messages[1]["content"] or "")
"""


def test_a_model_is_trained_on_what_an_agent_program_did_with_it(run: Run) -> None:
    run.samples().set("trainer.max_steps", 1)
    run.set("environment.name", run.config["environment"]["name"].replace(":Letters", ":Noted"))
    run.set("environment.args", {"harness": {"command": f"python3 -c {shlex.quote(NOTES)} {{task}}"}})
    run.train()
    run.assert_books_balance(1)
    played = [row.trajectory for row in read_trajectories(run.path / "trajectories")]
    assert len(played) > 0
    for trajectory in played:
        assert trajectory.failure is None
        assert len(trajectory.turns) == 2
        assert 0 <= (trajectory.reward or 0.0) < 1
        assert len(to_segments(trajectory)) == 1
    train = next(row for row in run.metrics() if row["kind"] == "train")
    assert train["sampling/sampling_logp_difference/max"] < 1e-3
    assert math.isfinite(train["grad_norm"])


def test_on_a_pipe_a_run_says_what_it_does_and_how_far_it_is(run: Run) -> None:
    run.set("evaluation", {"split": "heldout", "num_tasks": 1}).set("environment.args", {"mode": "slow"})
    run.set("trainer.max_steps", 2)
    del run.config["model"]["compute_dtype"], run.config["rollout"]["dtype"]
    lines = run.train().splitlines()
    chosen = run.resolved()["rollout"]["dtype"]
    assert chosen in ("float32", "bfloat16")
    assert run.resolved()["model"]["compute_dtype"] == chosen
    wanted = [
        f"run directory: {run.path}",
        "starting the environment server",
        "loading torch",
        f"model.compute_dtype and rollout.dtype: {chosen}, ",
        "loading the model and starting the rollout server",
        "publishing version 0",
        "held-out before training",
        "held-out before training: ",
        "sampling for step 1",
        "training step 1",
        "step 1/2  reward ",
        "sampling for step 2: ",
        "step 2/2  reward ",
        "held-out after 2 steps: ",
    ]
    found = iter(lines)
    for start in wanted:
        assert any(line.startswith(start) for line in found), f"no '{start}', or not in this order, in:\n{lines}"


def test_trajectories_and_checkpoints_are_read_by_the_usual_libraries(run: Run) -> None:
    run.train()
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = sorted(str(path) for path in (run.path / "trajectories").glob("*.parquet"))
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(run.folder / "cache"))
    assert len(rows) == 3 * 2 * 4
    assert all(len(turn["output_ids"]) == len(turn["logprobs"]) for row in rows for turn in row["turns"])
    checkpoint = sorted((run.path / "checkpoints").glob("step-*"))[-1]
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.vocab_size == len(
        AutoTokenizer.from_pretrained(checkpoint)
    )


def test_a_run_that_was_stopped_and_resumed_equals_one_that_never_was(run: Run, tmp_path: Path) -> None:
    run.samples().set("trainer.max_steps", 4).train()
    (tmp_path / "second").mkdir()
    stopped = Run(tmp_path / "second", run.model)
    stopped.config = run.config
    stopped.start().wait_for_step(2)
    assert stopped.process is not None
    stopped.kill(stopped.process.pid, 2)
    code, output = stopped.finish()
    assert code == 130, output
    assert "go on with: quintain train" in output
    assert stopped.steps() < 4
    stopped.train("--resume")
    assert equal(run.weights(), stopped.weights())
    assert run.places() == stopped.places()
    figures = [(row["step"], row["reward"], row["loss"], row["grad_norm"]) for row in run.metrics()]
    assert figures == [(row["step"], row["reward"], row["loss"], row["grad_norm"]) for row in stopped.metrics()]


def test_a_run_of_two_environments_is_killed_and_goes_on_with_a_held_out_figure_of_each(run: Run) -> None:
    letters = run.config.pop("environment")["name"]
    run.set("environments", [
        {"name": letters, "title": "all", "weight": 1},
        {"name": letters, "title": "early", "weight": 1, "args": {"mode": "early"}, "sampling": {"temperature": 0.7}},
    ]).set("evaluation", {"split": "heldout", "num_tasks": 3})  # fmt: skip
    run.samples().start().wait_for_step(1)
    assert run.process is not None
    run.kill(run.process.pid)
    run.finish()
    run.train("--resume")
    rows = run.metrics()
    for row in (row for row in rows if row["kind"] == "train"):
        assert (row["episodes/all"], row["episodes/early"]) == (4, 4)
        assert 0 <= row["reward/early"] <= 1
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, 3]
    for row in evaluations:
        assert row["heldout"] == pytest.approx((row["heldout/all"] + row["heldout/early"]) / 2)
    assert run.summary()["heldout_tasks"] == 6
    report = audit(run.path / "journal.db")
    assert report.ok, report.problems
    assert (report.steps, report.consumed) == (3, 6)


@pytest.mark.slow
def test_environments_of_many_turns_train_together_and_only_on_what_the_policy_said(tmp_path: Path) -> None:
    run = Run(tmp_path, make_model(tmp_path / "model", length=4096))
    run.config.pop("environment")
    run.set("environments", [
        {"name": "calculator", "weight": 1, "curriculum": {"tasks": 5}},
        {"name": "twenty_questions", "weight": 1, "args": {"max_turns": 3}},
        {"name": "shop", "weight": 1, "args": {"max_turns": 2}},
        {"name": "shell", "weight": 1, "args": {"shells": 4}},
        {"name": f"{ROOT}/tests/envs/samples.py:Bidding", "weight": 1, "title": "bidding"},
    ]).set("rollout.max_length", 4000)  # fmt: skip
    run.set("trainer.prompts_per_step", 5).set("trainer.num_generations", 2).set("trainer.max_steps", 2)
    run.start().wait_for_step(1)
    assert run.process is not None
    run.kill(run.process.pid)
    run.finish()
    run.train("--resume")
    names = ["bidding", "calculator", "shell", "shop", "twenty_questions"]
    for row in (row for row in run.metrics() if row["kind"] == "train"):
        assert [row[f"episodes/{name}"] for name in names] == [2] * 5
    report = audit(run.path / "journal.db")
    assert report.ok, report.problems
    assert report.steps == 2
    played = [row.trajectory for row in read_trajectories(run.path / "trajectories")]
    assert sorted({trajectory.environment for trajectory in played}) == names
    assert any(len(trajectory.turns) == 3 for trajectory in played)
    assert {turn.agent for row in played if row.environment == "bidding" for turn in row.turns} == {"ann", "bob"}
    assert all(trajectory.index < 5 for trajectory in played if trajectory.environment == "calculator")
    for trajectory in played:
        assert trajectory.failure is None
        seats = sorted(trajectory.turns, key=lambda turn: turn.agent)
        sampled = np.concatenate([turn.output_ids for turn in seats])
        trained = np.concatenate([segment.ids[segment.mask] for segment in to_segments(trajectory)])
        assert np.array_equal(sampled, trained)


def test_two_runs_of_one_seed_are_the_same_bit_for_bit_and_another_seed_is_not(run: Run, tmp_path: Path) -> None:
    run.samples().set("environment.max_episodes", 3).train()  # fewer than a step has
    for seed, same in ((3, True), (4, False)):
        (tmp_path / str(seed)).mkdir()
        other = Run(tmp_path / str(seed), run.model)
        other.config = run.config
        other.set("seed", seed).train()
        assert equal(run.weights(), other.weights()) is same


def test_a_policy_learns_what_its_environment_rewards(run: Run) -> None:
    run.samples().set("environment.args", {"mode": "early"}).set("rollout.top_k", 16)
    run.set("trainer.max_steps", 25).set("trainer.save_steps", None).set("trainer.prompts_per_step", 4).train()
    rewards = [row["reward"] for row in run.metrics() if row["kind"] == "train"]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > first + 0.2, rewards


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout.max_staleness": 1},
        {"trainer.threads": 2, "trainer.streams": 2},
        {"model.lora": {"r": 4, "alpha": 8}, "trainer.beta": 0.05},
        {"trainer.beta": 0.05, "trainer.num_iterations": 2, "model.gradient_checkpointing": True},
        {
            "trainer.loss_type": "grpo",
            "trainer.top_entropy_quantile": 0.5,
            "trainer.max_tokens_per_microbatch": 64,
        },
        {"model.compute_dtype": "bfloat16", "rollout.dtype": "bfloat16"},
    ],
    ids=[
        "staleness 1",
        "two streams",
        "lora with kl",
        "frozen reference, two iterations, checkpointing",
        "entropy mask",
        "bfloat16",
    ],
)
def test_what_the_file_may_ask_for_trains(run: Run, changes: dict[str, object]) -> None:
    if "model.lora" in changes or "rollout.dtype" in changes:  # what is published differs from what is trained
        run.samples()
    for path, value in changes.items():
        run.set(path, value)
    run.train()
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert max(row["staleness/max"] for row in rows) <= run.config["rollout"].get("max_staleness", 0)
    if run.config["trainer"].get("beta"):
        assert all(row["kl"] >= 0 for row in rows)
        assert rows[-1]["kl"] > 0
    run.assert_books_balance(3)


def test_the_checkpoint_of_a_run_can_be_evaluated_from_the_command_line(run: Run) -> None:
    run.samples().set("evaluation", {"split": "heldout"}).train()
    checkpoint = sorted((run.path / "checkpoints").glob("step-*"))[-1]
    command = ["eval", str(run.folder / "experiment.yaml"), f"--model={checkpoint}", "--json"]
    out, _ = Program(command, run.folder, apart=True).communicate(DEADLINE_S)
    result = json.loads(out.splitlines()[-1])
    assert result["mean_reward"] == pytest.approx(run.summary()["heldout_after"], abs=1e-6)
    assert (result["verified"], result["failed"]) == (6, 0)


CACHED = """
import sys
import torch
from quintain.config import ModelConfig
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.engines.embedded.modules import read_model
from quintain.trainers.model.policy import load_policy

engine, (trainer, _) = read_model("owner/tiny"), load_policy(ModelConfig(path="owner/tiny"), seed=0)
assert all(torch.equal(a, b) for a, b in zip(engine.state_dict().values(), trainer.state_dict().values(), strict=True))
load_tokenizer("owner/tiny")
"""


@pytest.mark.slow
def test_a_hub_name_is_the_same_model_to_engine_and_trainer(tmp_path: Path, tiny_model: Path) -> None:
    """From the hub's cache, laid out as huggingface_hub documents it: no network is asked."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environ = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CACHED], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ppo_trains_a_critic_beside_the_policy_and_keeps_both(run: Run) -> None:
    run.set("trainer.algorithm", "ppo").set("trainer.critic_warmup_steps", 1).set("trainer.num_iterations", 2)
    run.set("trainer.kl_target", 1.0).train()
    run.assert_books_balance(3)
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    for figure in ("reward", "kl", "kl_coef", "critic/loss", "critic/grad_norm", "critic/explained_variance"):
        assert all(math.isfinite(row[figure]) for row in rows), figure
    assert [row["loss"] == row["grad_norm"] == 0 for row in rows] == [True, False, False]
    checkpoint = sorted((run.path / "checkpoints").glob("step-*"))[-1]
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    AutoModelForCausalLM.from_pretrained(checkpoint)
    critic = AutoModelForSequenceClassification.from_pretrained(checkpoint / "critic")
    assert critic.score.weight.shape[0] == 1
    assert critic.score.weight.any()
    assert json.loads((checkpoint / "trainer.json").read_text())["state"]["kl_coef"] == pytest.approx(
        rows[-1]["kl_coef"], rel=0.3
    )
