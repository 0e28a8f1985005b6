"""Does every online algorithm learn? From one tiny model and one small verifiable task, at several seeds.

The task: of the two digits of a prompt, say the larger one. The model has random weights (a seventh of its answers
is right by chance); it is trained by the learner that `quintain train` uses, and samples in this process. The final
reward is the mean over the last five batches. Distillation learns from a teacher that GRPO has taught, from other
weights. SDPO is for models that make use of what they are told: its own is taught before to repeat a solution, and
nothing else.

    python benchmarks/learning.py [--seeds 3] [--steps N] [--only NAME ...] [--plot FILE.png]

The last line is JSON: ratio `worst_final_reward`, the lowest final reward of all algorithms and seeds (aim: 0.8), and
in detail for each algorithm the median, lowest and highest of first and final rewards, and the steps to 0.8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _side import report

from quintain.config import ExperimentConfig, OnlineConfig
from quintain.messages import assistant, user
from quintain.trainers.algorithms import algorithm_of
from quintain.trainers.algorithms.sdpo import SOLUTION, TOLD
from quintain.trainers.learner import Learner
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

DIGITS, START = 6, 6
UNKNOWN = START + 1
"""The word that stands for all others, of a model that listens."""
TOLD_STEPS = 400
"""In which it is taught to."""
TEMPLATE = f"{{% for m in messages %}}{{{{ '{START} ' if m.role == 'user' }}}}{{{{ m.content }}}} {{% endfor %}}"
GOOD = 0.8
LAST = 5
TEACHER = 1_000
"""The seed of the model that GRPO teaches, and that distillation learns from."""

PPO = {"algorithm": "ppo", "prompts_per_step": 64, "num_iterations": 2, "kl_coef": 0.001, "learning_rate": 2e-3}
"""Its groups have one member: half the episodes of the others' batches, gone over twice."""

TWICE = {"algorithm": "grpo", "num_iterations": 2, "learning_rate": 2e-3}
"""Losses that differ in what they make of a ratio that is not 1: each batch is gone over twice, at half the rate."""

SDPO = {"algorithm": "sdpo", "teacher_update_rate": 0.01, "learning_rate": 1e-3}
SDPO |= {"prompts_per_step": 32, "num_generations": 32}
"""A prompt of which no attempt succeeds teaches nothing, so it wants larger groups."""

DISTILLATION = {"algorithm": "distillation", "teacher": "", "num_generations": 8}

RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo"},
    "dr_grpo": {"algorithm": "grpo", "loss_type": "dr_grpo", "scale_rewards": "none"},
    "grpo, twice": TWICE,
    "gspo": TWICE | {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1},
    "gmpo": TWICE | {"loss_type": "gmpo", "epsilon": 0.4},
    "cispo": TWICE | {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": TWICE | {"loss_type": "sapo"},
    "vespo": TWICE | {"loss_type": "vespo"},
    "dppo": TWICE | {"loss_type": "dppo_tv"},
    "maxrl": {"algorithm": "grpo", "scale_rewards": "mean"},
    "pass_at_k": {"algorithm": "grpo", "pass_at_k": 2},
    "rloo": {"algorithm": "rloo", "beta": 0.001},
    "reinforce++": {"algorithm": "reinforce_plus_plus"},
    "reinforce++ baseline": {"algorithm": "reinforce_plus_plus_baseline"},
    "online_dpo": {"algorithm": "online_dpo", "beta": 0.05},
    "xpo": {"algorithm": "online_dpo", "beta": 0.05, "xpo_alpha": 1e-3},
    "nash_md": {"algorithm": "nash_md", "beta": 0.001},
    "nash_md, mixture": {"algorithm": "nash_md", "beta": 0.001, "mixture_coef": 0.125},
    "ppo": PPO,
    "ppo on one trunk": PPO | {"value_head": True},
    "entropy target": {"algorithm": "grpo", "entropy_target": 0.5},
    "distillation": DISTILLATION,
    "distillation, jsd": DISTILLATION | {"beta": 0.5},
    "sdpo": SDPO,
}


def make_model(folder: Path, seed: int, *, listens: bool) -> None:
    """Save a Llama of two small layers with random weights, which `listens` where it is to be told solutions, and a
    tokenizer of its words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    words = {str(word): word for word in range(START + 1)} | ({"?": UNKNOWN} if listens else {})
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
    split = Tokenizer(WordLevel(words, unk_token="?"))
    split.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, unk_token="?" if listens else None)
    tokenizer.chat_template = TEMPLATE
    if listens:
        teach_to_listen(model, tokenizer, np.random.default_rng(seed))
    for part in (model, tokenizer):
        part.save_pretrained(folder)


def teach_to_listen(model: Any, tokenizer: Any, rng: np.random.Generator) -> None:
    """Have `model` say what it is told in the words of SDPO, whatever that is, and anything where nothing is told."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(TOLD_STEPS):
        loss = torch.zeros(())
        for told in (True, False):
            asked, said = rng.integers(0, DIGITS, (64, 2)), rng.integers(0, DIGITS, 64)
            texts = [f"{a} {b}" for a, b in asked]
            if told:
                texts = [TOLD.format(text, SOLUTION.format(s), "") for text, s in zip(texts, said, strict=True)]
            chats = [[{"role": "user", "content": text}] for text in texts]
            ids = tokenizer.apply_chat_template(chats, tokenize=True, return_dict=False)
            loss = loss + torch.nn.functional.cross_entropy(
                model(torch.tensor(ids)).logits[:, -1], torch.from_numpy(said)
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def sampled(model: Any, options: OnlineConfig, rng: np.random.Generator, version: int) -> tuple[list[Group], float]:
    """A batch of groups that `model` samples, and its mean reward."""
    digits = rng.integers(0, DIGITS, (options.prompts_per_step, 2))
    prompts = np.concatenate([np.full((len(digits), 1), START), digits], 1)
    model.eval()
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.from_numpy(prompts)).logits[:, -1].float(), -1).numpy()
    groups, rewards = [], []
    for g, (prompt, score) in enumerate(zip(prompts, scores, strict=True)):
        chance = np.exp(score.astype(np.float64))
        answers = rng.choice(len(chance), options.num_generations, p=chance / chance.sum())
        asked = (user(" ".join(map(str, prompt[1:].tolist()))),)
        members = []
        for member, answer in enumerate(answers.tolist()):
            reward = float(answer == prompt[1:].max())
            rewards.append(reward)
            spans = (VersionSpan(version, 0, 1),)
            turn = Turn(
                prompt.tolist(), [answer], [score[answer]], Finish.STOP, spans, assistant(str(answer)), reward=reward
            )
            who = (f"{g}/{member}", str(g), "max", g, member, 0)
            members.append(Trajectory(*who, (turn,), Ending.TERMINATED, reward, prompt=asked))
        groups.append(Group(str(g), g, tuple(members)))
    return groups, statistics.mean(rewards)


def run(name: str, seed: int, steps: int, folder: Path) -> list[float]:
    """The mean reward of each batch of one run; its model stays in `folder`, by the run's name and seed."""
    listens = RUNS[name]["algorithm"] == "sdpo"
    model = folder / f"model-{seed}-{listens}"
    if not model.exists():
        make_model(model, seed, listens=listens)
    trainer = {"max_steps": steps, "learning_rate": 4e-3, "prompts_per_step": 16, "threads": 1} | RUNS[name]
    if "teacher" in trainer:
        trainer["teacher"] = str(teacher := folder / f"grpo-{TEACHER}")
        if not teacher.exists():
            run("grpo", TEACHER, steps, folder)
    config = ExperimentConfig.model_validate(
        {
            "seed": seed,
            "model": {"path": str(model), "compute_dtype": "float32"},
            "environment": {"name": "math"},
            "rollout": {"max_completion_length": 1, "stop_ids": [UNKNOWN]},
            "trainer": trainer,
        }
    )
    learner = Learner(config, algorithm_of(config), checkpoints=folder / "checkpoints", logs=folder / "logs")
    rng = np.random.default_rng(seed)
    rewards = []
    for step in range(steps):
        groups, reward = sampled(learner.model, config.online, rng, step)
        rewards.append(reward)
        learner.update(groups, step=step)
    learner.close()
    for part in (learner.model, learner.tokenizer):
        part.save_pretrained(folder / f"{name}-{seed}")
    return rewards


def steps_to(rewards: Sequence[float], good: float) -> int | None:
    """After how many steps the mean of five batches in a row is `good`; None: never."""
    means = np.convolve(rewards, np.full(LAST, 1 / LAST), "valid")
    return int(np.argmax(means >= good)) + LAST if (means >= good).any() else None


def described(curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """One line of the table: median, lowest and highest over the seeds."""
    first, final = [statistics.mean(c[:LAST]) for c in curves], [statistics.mean(c[-LAST:]) for c in curves]
    spread = {"first": first, "final": final}
    figures = {k: [round(f(v), 3) for f in (statistics.median, min, max)] for k, v in spread.items()}
    return {**figures, "steps": [steps_to(c, GOOD) for c in curves]}


def plot(curves: dict[str, list[list[float]]], path: Path) -> None:
    """The median curve of each algorithm, and the band of its seeds."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(9, 5), layout="constrained")).subplots()
    for name, found in curves.items():
        smooth = np.array([np.convolve(c, np.full(LAST, 1 / LAST), "valid") for c in found])
        (line,) = axes.plot(np.median(smooth, 0), label=name)
        axes.fill_between(np.arange(smooth.shape[1]), smooth.min(0), smooth.max(0), alpha=0.1, color=line.get_color())
    axes.set(xlabel="step", ylabel="reward", ylim=(0, 1))
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    curves: dict[str, list[list[float]]] = {}
    print(f"{'algorithm':22} {'first':>6} {'final: median':>14} {'lowest':>7} {'highest':>8}  steps to {GOOD}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            curves[name] = [run(name, seed, args.steps, Path(folder)) for seed in range(args.seeds)]
            line = described(curves[name])
            median, low, high = line["final"]
            print(
                f"{name:22} {line['first'][0]:6.2f} {median:14.2f} {low:7.2f} {high:8.2f}  {line['steps']}", flush=True
            )
    if args.plot:
        plot(curves, args.plot)
    table = {name: described(found) for name, found in curves.items()}
    report("learning", {"worst_final_reward": min(line["final"][1] for line in table.values())}, table)


if __name__ == "__main__":
    main()
