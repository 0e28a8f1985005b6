"""Seconds and memory of a training step: SFT, DPO, reward models, GRPO, RLOO and PPO, here and in TRL's trainers.

SmolLM2-135M-Instruct, float32 or bfloat16 (whichever is faster on this machine, for both), all threads, the same
token ids in the same batches, AdamW at the same constant rate, no gradient checkpointing. Each side is a process of its
own, the sides take turns; a first step warms up and is not counted. Losses and norms of gradients are compared step by
step. GRPO and RLOO train on one group of given completions, so no sampling is in the figures, and no
pass for old log-probabilities on TRL's side; PPO (TRL 1.12's, the last there was; 1.16 otherwise) likewise, and
`ppo_single` on eight prompts with an answer each.

    python benchmarks/trainers_vs_trl.py [--steps 3] [--rounds 2] [--only sft,…,rloo,ppo,ppo_single]

`sft_words` has SmolLM2's shape with 8 layers and 151,936 words. The last line is JSON: ratios `<stage>_time` and
`<stage>_memory` (quintain / TRL), the largest difference of a loss is in the detail.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from _side import ROOT, report

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
RATE, WORDS = 1e-5, 49_000
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"trainer": "sft", "rows": 8, "prompt": (32, 128), "answers": (64, 384)},
    "dpo_256": {"trainer": "dpo", "rows": 4, "prompt": (256, 256), "answers": (256, 256)},
    "dpo_64": {"trainer": "dpo", "rows": 4, "prompt": (256, 256), "answers": (64, 64)},
    "reward": {"trainer": "reward", "rows": 4, "prompt": (128, 256), "answers": (64, 256)},
    "sft_words": {"trainer": "sft", "rows": 8, "prompt": (32, 128), "answers": (64, 384)},
    "grpo": {"trainer": "grpo", "rows": 1, "group": 8, "prompt": (256, 256), "answers": (64, 128)},
    "rloo": {"trainer": "rloo", "rows": 1, "group": 8, "prompt": (256, 256), "answers": (64, 128)},
    "ppo": {"trainer": "ppo", "rows": 1, "group": 8, "prompt": (256, 256), "answers": (128, 128)},
    "ppo_single": {"trainer": "ppo", "rows": 8, "group": 1, "prompt": (256, 256), "answers": (128, 128)},
}
Row = tuple[list[int], list[list[int]]]


def rows(stage: str, count: int) -> list[Row]:
    """(prompt, its answers) of random words."""
    about, rng = STAGES[stage], np.random.default_rng(0)

    def ids(between: tuple[int, int]) -> list[int]:
        found: list[int] = rng.integers(10, WORDS, int(rng.integers(between[0], between[1] + 1))).tolist()
        return found

    answers = about.get("group", 1 if about["trainer"] == "sft" else 2)
    return [(ids(about["prompt"]), [ids(about["answers"]) for _ in range(answers)]) for _ in range(count)]


def model_of(stage: str, folder: Path, *, small: bool) -> Path:
    """The model's folder, made where it is not SmolLM2 itself."""
    if stage != "sft_words" and not small:
        return MODEL
    shape = {"hidden_size": 72, "intermediate_size": 64, "num_hidden_layers": 2} if small else {"num_hidden_layers": 8}
    words = {"vocab_size": 151_936} if stage == "sft_words" else {}
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(MODEL, **shape, **words)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def reward_of(answer: list[int]) -> float:
    """Some number between 0 and 1 that both sides know."""
    return sum(answer) % 1_000 / 1_000


def group_of(at: int, prompt: list[int], answers: list[list[int]]) -> Any:
    """The answers as a group of episodes of one turn."""
    from quintain.messages import assistant
    from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

    members = []
    for member, answer in enumerate(answers):
        spans, zeros, reward = (VersionSpan(at, 0, len(answer)),), [0.0] * len(answer), reward_of(answer)
        turn = Turn(prompt, answer, zeros, Finish.STOP, spans, assistant("words"), reward=reward)
        members.append(
            Trajectory(f"{at}/{member}", str(at), "words", at, member, 0, (turn,), Ending.TERMINATED, reward)
        )
    return Group(str(at), at, tuple(members))


def quintain(stage: str, steps: int, model: Path, dtype: str, folder: Path) -> tuple[list[float], list[list[float]]]:
    """(seconds, losses and norms of gradients) of the steps of `Learner.update`."""
    from quintain.arrays import as_ints
    from quintain.config import parse_config
    from quintain.trainers.algorithms import algorithm_of
    from quintain.trainers.examples import Example
    from quintain.trainers.learner import Learner

    about = STAGES[stage]
    text = f"model: {{path: {model}, compute_dtype: {dtype}}}\n"
    options = {"algorithm": about["trainer"], "learning_rate": RATE, "lr_scheduler_type": "constant"}
    if "group" in about:
        options |= {"num_generations": about["group"], "prompts_per_step": about["rows"], "num_iterations": 1}
        options |= {"critic_learning_rate": RATE} if about["trainer"] == "ppo" else {"beta": 0.0}
        text += f"rollout: {{dtype: {dtype}, max_completion_length: 128}}\nenvironment: {{name: math}}\n"
    else:
        text += f"rollout: {{dtype: {dtype}}}\ndataset: none.jsonl\n"
    config = parse_config(text, [f"trainer.{name}={value}" for name, value in options.items()])
    learner: Any = Learner(config, algorithm_of(config), checkpoints=folder, logs=folder)
    made = rows(stage, about["rows"] * steps)
    data: list[Any] = [
        group_of(at, prompt, answers)
        if "group" in about
        else Example(
            "row",
            tuple(as_ints(prompt + answer) for answer in answers),
            tuple(((len(prompt), len(prompt) + len(answer)),) for answer in answers),
            len(prompt),
        )
        for at, (prompt, answers) in enumerate(made)
    ]
    seconds, figures = [], []
    for step in range(steps):
        began = time.perf_counter()
        found = learner.update(data[step * about["rows"] : (step + 1) * about["rows"]], step=step)
        seconds.append(time.perf_counter() - began)
        figures.append([found.get("critic/loss", found["loss"]), found["grad_norm"]])
    learner.close()
    return seconds, figures


def trl(stage: str, steps: int, model: Path, dtype: str, folder: Path) -> tuple[list[float], list[list[float]]]:
    """(seconds, losses and norms of gradients) of the steps of TRL's trainer."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    about = STAGES[stage]
    made = rows(stage, about["rows"] * steps)
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    torch.manual_seed(0)
    kind = {"sft": "SFT", "dpo": "DPO", "reward": "Reward", "grpo": "GRPO", "rloo": "RLOO"}[about["trainer"]]
    online = "group" in about
    own = {"beta": 0.0, "num_generations": about["group"], "max_completion_length": 128} if online else {
        "max_length": None, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    args = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), per_device_train_batch_size=about["rows"] * about.get("group", 1), max_steps=steps,
        learning_rate=RATE, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, bf16=dtype == "bfloat16", gradient_checkpointing=False, disable_tqdm=True, seed=0, **own,
    )  # fmt: skip
    if about["trainer"] == "reward":
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    class Ready(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # of token ids already

        def _prepare_inputs(self, batch: Any) -> Any:
            if not online:
                return super()._prepare_inputs(batch)
            began = time.perf_counter()
            inputs = scored(*made[self.state.global_step], kind)
            if kind == "RLOO":
                with torch.no_grad():
                    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
                    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
                    keep = inputs["completion_ids"].shape[1]
                    logp, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep)
                inputs["old_logps"] = (logp * inputs["completion_mask"]).sum(1)
            seconds[-1] -= time.perf_counter() - began  # sampling's part, not the step's
            return inputs

    more = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if online else {}
    trainer: Any = Ready(
        model=loaded,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["words"] * steps} if online else columns_of(stage, made)),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Clock()],
        **more,
    )
    trainer.train()
    return seconds, [[row["loss"], row["grad_norm"]] for row in trainer.state.log_history if "loss" in row]


def trl_ppo(stage: str, steps: int, model: Path, dtype: str, folder: Path) -> tuple[list[float], list[list[float]]]:
    """The same of TRL 1.12's PPO, of which the clock stands still until it has its answers and their log-probabilities,
    and whose rewards cost nothing; the loss is the critic's, and nothing is known of its gradients' norm."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    about = STAGES[stage]
    batch = about["rows"] * about["group"]
    made = [(prompt, answer) for prompt, answers in rows(stage, about["rows"] * steps) for answer in answers]
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    def sampled(policy: Any, *_: Any) -> tuple[Any, Any]:
        now = made[len(seconds) * batch : (len(seconds) + 1) * batch]
        ids = torch.tensor([prompt + answer for prompt, answer in now])
        scores = policy(ids, use_cache=False).logits[:, len(now[0][0]) - 1 : -1].clone()
        seconds.append(-time.perf_counter())
        return ids, scores

    def rewarded(judge: Any, ids: Any, pad: int, start: int) -> tuple[Any, Any, Any]:
        if judge is not rewards:
            return whole(judge, ids, pad, start)  # type: ignore[no-any-return]
        return None, torch.tensor([reward_of(row[start:].tolist()) for row in ids]), None

    whole, ppo_trainer.batch_generation, ppo_trainer.get_reward = ppo_trainer.get_reward, sampled, rewarded
    rewards = torch.nn.Module()
    value = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(value.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token_id = WORDS + 1  # a word that is in no answer
    longest = about["answers"][1]
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=1,
            num_mini_batches=1, num_ppo_epochs=1, local_rollout_forward_batch_size=batch, total_episodes=batch * steps,
            response_length=longest, temperature=1.0, kl_coef=0.05, vf_coef=1.0, num_sample_generations=0,
            learning_rate=RATE, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
            use_cpu=True, bf16=dtype == "bfloat16", gradient_checkpointing=False, disable_tqdm=True, seed=0,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_model=rewards,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": [prompt for prompt, _ in made]}),
        eval_dataset=Dataset.from_dict({"input_ids": [made[0][0]]}),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return seconds, [[row["loss/value_avg"], math.nan] for row in trainer.state.log_history if "loss/value_avg" in row]


def older_trl() -> str:
    """Where TRL 1.12 is, the last that had PPO; made once, to go before the other on a Python's path."""
    folder = ROOT / ".venvs" / "trl-1.12.0"
    if not (folder / "trl").exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as new:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", new, "trl==1.12.0"]
            subprocess.run(pip, check=True)
            Path(new).rename(folder)
    return str(folder)


def columns_of(stage: str, made: list[Row]) -> dict[str, Any]:
    """The rows as TRL's trainers on data have them once they are tokens."""
    if STAGES[stage]["trainer"] == "sft":
        return {
            "input_ids": [prompt + answers[0] for prompt, answers in made],
            "labels": [[-100] * len(prompt) + answers[0] for prompt, answers in made],
        }
    full = STAGES[stage]["trainer"] == "reward"
    columns: dict[str, Any] = {
        f"{name}_ids": [(prompt if full else []) + answers[at] for prompt, answers in made]
        for at, name in enumerate(("chosen", "rejected"))
    }
    return columns if full else columns | {"prompt_ids": [prompt for prompt, _ in made]}


def scored(prompt: list[int], answers: list[list[int]], kind: str) -> dict[str, Any]:
    """The answers as TRL's online trainers have them once they are sampled and rewarded."""
    import torch

    longest = max(map(len, answers))
    rewards = torch.tensor([reward_of(answer) for answer in answers])
    apart = rewards - rewards.mean()
    advantages = apart / (rewards.std() + 1e-4) if kind == "GRPO" else apart * len(answers) / (len(answers) - 1)
    return {
        "prompt_ids": torch.tensor([prompt] * len(answers)),
        "prompt_mask": torch.ones(len(answers), len(prompt), dtype=torch.long),
        "completion_ids": torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers]),
        "completion_mask": torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers]),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(sum(map(len, answers))),
    }


def side(args: argparse.Namespace) -> None:
    """One side of one stage, in this process; its figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run = quintain if args.side == "quintain" else trl_ppo if STAGES[args.stage]["trainer"] == "ppo" else trl
        seconds, figures = run(args.stage, args.steps + 1, Path(args.model), args.dtype, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds[1:], "figures": figures, "peak_bytes": peak}))


def asked(name: str, stage: str, steps: int, model: Path, dtype: str) -> dict[str, Any]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, f"--side={name}", f"--stage={stage}", f"--steps={steps}", f"--model={model}"]
    older = name == "trl" and STAGES[stage]["trainer"] == "ppo"
    env = {**os.environ, "PYTHONPATH": older_trl()} if older else None
    done = subprocess.run([*command, f"--dtype={dtype}"], stdout=subprocess.PIPE, text=True, check=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{stage}: {name} {[round(x, 2) for x in found['seconds']]} s, {found['peak_bytes'] / 2**30:.2f} GiB",
        file=sys.stderr,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(STAGES))
    parser.add_argument("--small", action="store_true", help="a toy model, to try the script out")
    parser.add_argument("--side", choices=("quintain", "trl"))
    for hidden in ("--stage", "--model", "--dtype"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args)
    from quintain.rollout.engines.dtypes import faster

    dtype = args.dtype or faster()[0]
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {"dtype": dtype}
    with tempfile.TemporaryDirectory() as folder:
        for stage in args.only.split(","):
            model = model_of(stage, Path(folder) / ("words" if stage == "sft_words" else "model"), small=args.small)
            found: dict[str, list[dict[str, Any]]] = {"quintain": [], "trl": []}
            for _ in range(args.rounds):
                for name, results in found.items():
                    results.append(asked(name, stage, args.steps, model, dtype))
            seconds = {n: statistics.median(x for r in all_ for x in r["seconds"]) for n, all_ in found.items()}
            peaks = {n: max(r["peak_bytes"] for r in all_) for n, all_ in found.items()}
            ratios |= {
                f"{stage}_time": seconds["quintain"] / seconds["trl"],
                f"{stage}_memory": peaks["quintain"] / peaks["trl"],
            }
            ours, theirs = (np.array(found[name][0]["figures"]) for name in ("quintain", "trl"))
            detail[stage] = {
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "gib": {name: round(value / 2**30, 3) for name, value in peaks.items()},
                "largest_loss_difference": float(abs(ours - theirs)[:, 0].max()),
            }
            if not np.isnan(theirs[:, 1]).any():
                detail[stage]["largest_gradient_norm_difference"] = float(abs(ours[:, 1] / theirs[:, 1] - 1).max())
    report("trainers_vs_trl", ratios, detail)


if __name__ == "__main__":
    main()
