"""The quickstart in TRL's GRPOTrainer. Run by vs_trl.py, in TRL's own virtual environment; it imports no quintain.

Prints one JSON line an evaluation: {"step", "train_s", "heldout"}. `train_s` is the trainer's own wall time since
`train()` began, evaluations left out; the evaluation is greedy and batched, in the type of the training.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def correct(text: str, reference: str) -> float:
    """1.0 if the last number in `text` is the reference."""
    found = NUMBER.findall(text)
    return float(bool(found) and found[-1].replace(",", "").rstrip(".") == reference)


class Watch(TrainerCallback):
    """Counts training time, evaluates every `every` steps, and stops at `target`."""

    def __init__(
        self, tokenizer: Any, heldout: list[dict[str, Any]], *, every: int, target: float, tokens: int, bfloat16: bool
    ) -> None:
        self.bfloat16 = bfloat16
        self.tokenizer, self.heldout, self.every, self.target, self.tokens = (
            tokenizer,
            heldout,
            every,
            target,
            tokens,
        )
        self.began = 0.0
        self.away = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluate(0, kwargs["model"])
        self.began, self.away = time.monotonic(), 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == args.max_steps:
            began = time.monotonic()
            train_s = began - self.began - self.away
            if self.evaluate(state.global_step, kwargs["model"], train_s) >= self.target:
                control.should_training_stop = True
            self.away += time.monotonic() - began

    @torch.no_grad()
    def evaluate(self, step: int, model: Any, train_s: float = 0.0) -> float:
        was, self_training = model.dtype, model.training
        checkpointing = getattr(model, "is_gradient_checkpointing", False)
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()
        scores = []
        for at in range(0, len(self.heldout), 100):
            rows = self.heldout[at : at + 100]
            prompts = [
                self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
                for row in rows
            ]
            batch = self.tokenizer(
                prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                out = model.generate(**batch, max_new_tokens=self.tokens, do_sample=False)
            texts = self.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            scores += [correct(text, row["reference"]) for text, row in zip(texts, rows, strict=True)]
        model.train(self_training)
        if checkpointing:
            model.gradient_checkpointing_enable()
        heldout = sum(scores) / len(scores)
        print(json.dumps({"step": step, "train_s": train_s, "heldout": heldout, "dtype": str(was)}), flush=True)
        return heldout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True, help="JSON written by vs_trl.py")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    spec = json.loads(args.spec.read_text())
    torch.set_num_threads(spec["threads"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    references = {row["prompt"][-1]["content"]: row["reference"] for row in spec["train"]}

    def reward(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        return [
            correct(said[0]["content"], references[asked[-1]["content"]])
            for asked, said in zip(prompts, completions, strict=True)
        ]

    config = GRPOConfig(
        output_dir=str(args.output),
        per_device_train_batch_size=spec["per_device"],
        gradient_accumulation_steps=spec["batch"] // spec["per_device"],
        num_generations=spec["generations"],
        max_completion_length=spec["tokens"],
        max_steps=spec["max_steps"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type=spec["scheduler"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        loss_type="dapo",
        temperature=1.0,
        scale_rewards="group",
        shuffle_dataset=False,
        seed=spec["seed"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **spec["options"],
    )
    watch = Watch(
        tokenizer,
        spec["heldout"],
        every=spec["every"],
        target=spec["target"],
        tokens=spec["tokens"],
        bfloat16=spec["options"]["bf16"],
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(spec["train"]),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.train()


if __name__ == "__main__":
    main()
