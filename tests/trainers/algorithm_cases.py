"""Every algorithm with options that make it do all it can, and a batch for it; what holds for all is tested over these.

A new algorithm is tested by being listed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quintain.arrays import Ints, as_ints
from quintain.config import ExperimentConfig, parse_config
from quintain.messages import Message, ToolSpec, user
from quintain.trainers.algorithms import algorithm_of
from quintain.trainers.algorithms.sdpo import SDPO
from quintain.trainers.examples import Example
from quintain.trajectory import Trajectory

from ..tiny_llama import tiny_llama
from .test_update import groups


def sampled(seed: int) -> Any:
    """Groups with a failure in each."""
    return groups(seed, failing=True)


def _sequences(seed: int, *, each: int, count: int = 5) -> list[tuple[int, list[list[int]]]]:
    """(prompt's length, sequences that begin with it) of `count` examples with `each` completions."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = rng.integers(3, 97, int(rng.integers(2, 8))).tolist()
        answers = [rng.integers(3, 97, int(rng.integers(2, 9))).tolist() for _ in range(each)]
        made.append((len(prompt), [prompt + answer for answer in answers]))
    return made


def _example(prompt: int, sequences: list[list[int]], **more: Any) -> Example:
    spans = tuple(((prompt, len(ids)),) for ids in sequences)
    return Example("row", tuple(map(as_ints, sequences)), spans, prompt, **more)


def texts(seed: int) -> Any:
    """Prompts with a completion each."""
    return [_example(*made) for made in _sequences(seed, each=1)]


def pairs(seed: int) -> Any:
    """Pairs, some with a margin."""
    return [_example(*made, margin=[None, 0.5][at % 2]) for at, made in enumerate(_sequences(seed, each=2))]


def labelled(seed: int) -> Any:
    """Completions, of which three of five are desirable."""
    return [_example(*made, label=at % 2 == 0) for at, made in enumerate(_sequences(seed, each=1))]


def stepped(seed: int) -> Any:
    """Completions of two steps."""
    made = _sequences(seed, each=1)
    return [
        Example(
            "row", (as_ints(ids),), (((prompt, prompt + 1), (len(ids) - 1, len(ids))),), prompt, labels=(True, at < 2)
        )
        for at, (prompt, (ids,)) in enumerate(made)
    ]


def beside(seed: int) -> Any:
    """Groups, and examples behind them."""
    return [*sampled(seed), *texts(seed)]


def positive(seed: int) -> Any:
    """The same with rewards from 0 on."""

    def moved(member: Trajectory) -> Trajectory:
        return member if member.reward is None else replace(member, reward=abs(member.reward))

    return [replace(group, trajectories=tuple(map(moved, group.trajectories))) for group in sampled(seed)]


def by_turn(seed: int) -> Any:
    """The same with the reward at the last turn."""

    def placed(member: Trajectory) -> Trajectory:
        *before, last = member.turns
        return replace(member, turns=(*before, replace(last, reward=member.reward or 0.0)))

    return [replace(group, trajectories=tuple(map(placed, group.trajectories))) for group in sampled(seed)]


def told(seed: int) -> Any:
    """The same with prompts that `Numbers` renders."""

    def asked(member: Trajectory) -> Trajectory:
        if not member.turns:
            return member
        first, *rest = member.turns
        prompt = " ".join(map(str, first.new_ids))
        return replace(member, turns=(replace(first, new_ids=[*first.new_ids, 2]), *rest), prompt=(user(prompt),))

    return [replace(group, trajectories=tuple(map(asked, group.trajectories))) for group in sampled(seed)]


class Numbers:
    """A chat layer of messages that are numbers, the tokens; a word is as long as it is, and 2 asks for an answer."""

    def first(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> Ints:
        words = [word for message in messages for word in message.text.split()]
        return as_ints([*(int(word) if word.isdigit() else 3 + len(word) for word in words), 2])


def algorithm_for(config: ExperimentConfig) -> Any:
    """The algorithm that the experiment names, with `Numbers` where it renders prompts."""
    algorithm = algorithm_of(config)
    if isinstance(algorithm, SDPO):
        algorithm.chat = Numbers  # type: ignore[assignment]
    return algorithm


ONLINE = (sampled, positive, by_turn, told, beside)


@dataclass(frozen=True)
class Case:
    """An algorithm, its options and what makes a batch from a seed."""

    algorithm: str
    options: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int], Any] = sampled
    lora: dict[str, Any] | None = None


def config_of(case: Case, model: Path, **more: Any) -> ExperimentConfig:
    """The experiment of `case` with the model of that folder, and `more` options of the trainer.

    With Adam's own epsilon the rounding of a gradient that is nearly zero would become as large as the rate.
    """
    source = "environment: {name: math}\n" if case.data in ONLINE else ""
    source += "dataset: rows.jsonl" if case.data not in ONLINE or case.data is beside else ""
    text = f"model: {{path: {model}, compute_dtype: float32}}\n{source}\n"
    options = (
        {"algorithm": case.algorithm, "learning_rate": 0.01, "adam_epsilon": 1e-4, "threads": 1} | case.options | more
    )
    if case.algorithm == "distillation" and "teacher_url" not in options:
        options = {"teacher": str(teacher_beside(model))} | options
    settings = [f"trainer.{name}={json.dumps(value)}" for name, value in options.items()]
    return parse_config(text, settings + ([f"model.lora={json.dumps(case.lora)}"] if case.lora else []))


def teacher_beside(model: Path) -> Path:
    """A folder beside that of `model` with its tokenizer and a model of other weights."""
    from transformers import AutoTokenizer

    folder = model.with_name(f"{model.name}-teacher")
    if not folder.exists():
        tiny_llama(7, words=97, length=64, initializer_range=0.2).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


CASES: dict[str, Case] = {
    "grpo": Case("grpo"),
    "grpo with everything": Case(
        "grpo",
        {
            "beta": 0.1,
            "top_entropy_quantile": 0.6,
            "off_policy_correction": "tis",
            "num_iterations": 2,
            "mask_truncated_completions": True,
        },
    ),
    "sft": Case("sft", data=texts),
    "sft with dft": Case("sft", {"loss_type": "dft"}, data=texts),
    "dpo": Case("dpo", data=pairs),
    "dpo with everything": Case(
        "dpo",
        {
            "loss_type": ["sigmoid", "ipo", "sft"],
            "loss_weights": [0.5, 0.01, 1.0],
            "ld_alpha": 0.5,
            "use_weighting": True,
            "f_divergence_type": "js_divergence",
        },
        data=pairs,
    ),
    "aot": Case("dpo", {"loss_type": ["aot", "aot_unpaired"], "train_batch_size": 3}, data=pairs),
    "dpo with a reference that follows": Case(
        "dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}, data=pairs
    ),
    "dpo with an adapter and a reference that follows": Case(
        "dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}, pairs, lora={"r": 2}
    ),
    "cpo": Case("cpo", data=pairs),
    "simpo": Case("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}, data=pairs),
    "orpo": Case("orpo", data=pairs),
    "kto": Case("kto", {"beta": 0.5, "undesirable_weight": 0.7}, data=labelled),
    "kto without a kl": Case("kto", {"loss_type": "apo_zero_unpaired"}, data=labelled),
    "bco": Case("bco", {"learning_rate": 0.01}, data=labelled),
    "reward": Case("reward", {"center_rewards_coefficient": 0.1}, data=pairs),
    "prm": Case("prm", data=stepped),
    "maxrl": Case("grpo", {"scale_rewards": "mean"}, positive),
    "pass at k": Case("grpo", {"pass_at_k": 2}),
    "rloo": Case("rloo", {"beta": 0.0}),
    "rloo with everything": Case(
        "rloo",
        {
            "normalize_advantages": True,
            "reward_clip_range": [-1.0, 1.0],
            "num_mini_batches": 2,
            "mask_truncated_completions": True,
        },
    ),
    "reinforce++": Case("reinforce_plus_plus", {"kl_coef": 0.1, "gamma": 0.9}),
    "reinforce++ with a baseline": Case("reinforce_plus_plus_baseline", {"beta": 0.1, "loss_type": "grpo"}),
    "online dpo": Case("online_dpo"),
    "online dpo with everything": Case(
        "online_dpo",
        {"pairs": "all", "pair_margin": 0.1, "loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.1], "ld_alpha": 0.5},
    ),
    "xpo": Case("online_dpo", {"xpo_alpha": 0.1}),
    "distillation": Case("distillation", {"gamma": 0.5, "num_iterations": 2, "num_mini_batches": 2}),
    "distillation of whole distributions": Case("distillation", {"beta": 0.5}),
    "distillation with data beside": Case("distillation", {"beta": 0.5, "lmbda": 0.5}, beside),
    "ppo": Case("ppo", {"critic_learning_rate": 0.001}),
    "ppo on one trunk": Case("ppo", {"value_head": True, "num_mini_batches": 2}),
    "ppo on one trunk with an adapter and muon": Case(
        "ppo", {"value_head": True, "kl_coef": 0.0, "optim": "muon"}, lora={"r": 2}
    ),
    "ppo with everything": Case(
        "ppo",
        {
            "gamma": 0.9,
            "whiten_rewards": True,
            "kl_estimator": "k3",
            "kl_target": 0.1,
            "kl_horizon": 10,
            "critic_learning_rate": 0.002,
            "num_mini_batches": 2,
        },
    ),
    "gmpo with an entropy bonus": Case("grpo", {"loss_type": "gmpo", "entropy_coef": 0.05}),
    "entropy with a target": Case("grpo", {"entropy_coef": 0.1, "entropy_target": 9.0, "entropy_coef_delta": 0.2}),
    "echo": Case("grpo", {"env_token_loss_coef": 0.5, "num_mini_batches": 2, "beta": 0.1, "loss_type": "grpo"}),
    "soft overlong": Case("grpo", {"soft_punish_cache": 254, "reward_weights": {"soft_overlong": 1.0}}),
    "dppo": Case("grpo", {"loss_type": "dppo_tv"}),
    "grpo by turns": Case("grpo", {"credit": "turn", "discount": 0.9}, by_turn),
    "grpo with another optimiser": Case("grpo", {"optim": "adafactor"}),
    "grpo with muon": Case("grpo", {"optim": "muon"}),
    "nash-md": Case("nash_md"),
    "nash-md against the mixture": Case("nash_md", {"mixture_coef": 0.5}),
    "sdpo": Case("sdpo", {"success_reward_threshold": 0.0, "num_iterations": 2}, told),
    "sdpo with an adapter": Case("sdpo", {"success_reward_threshold": 0.0}, told, lora={"r": 2}),
    "sdpo by the policy before training": Case(
        "sdpo", {"success_reward_threshold": 0.0, "teacher_model_kind": "base"}, told, lora={"r": 2}
    ),
    "sdpo by the policy as it is": Case("sdpo", {"success_reward_threshold": 0.0, "teacher_model_kind": "live"}, told),
    "clip-cov": Case("grpo", {"covariance": "clip", "covariance_ratio": 0.2, "covariance_bounds": [0.1, 9.0]}),
    "kl-cov": Case("grpo", {"covariance": "kl", "covariance_ratio": 0.2, "num_mini_batches": 2}),
}
