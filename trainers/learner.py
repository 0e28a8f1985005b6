"""The learning side of a run: the model, its optimiser, and what is done to them between two batches.

Invariants:
- weights change in one place, once per pass over a batch, after all gradients are in, and never by a gradient that is
  not finite;
- a stop is possible between the micro-batches of a step's first pass: it drops the gradient and leaves the weights of
  the last whole step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from quintain.config import ExperimentConfig
from quintain.failure import QuintainError
from quintain.rollout.chat.load import quiet_transformers
from quintain.rollout.engines.contract import steady_length
from quintain.rollout.engines.dtypes import torch_dtype
from quintain.trainers.algorithms.base import Algorithm, Pass
from quintain.trainers.batches.batch import Layout, MicroBatch, micro_batches
from quintain.trainers.checkpoint import Progress, restore, save_checkpoint
from quintain.trainers.losses.metrics import metric_values
from quintain.trainers.model.forward import PolicyForward, TokenLogprobs, supports_tree
from quintain.trainers.model.policy import ReferenceModel, load_policy
from quintain.trainers.rows import Row, Rows
from quintain.trainers.schedule import learning_rate
from quintain.trainers.streams import Streams, draws_random_numbers
from quintain.trainers.update import Share, Work, accumulate, parameters_of, score
from quintain.trajectory import Group

SKIPS_IN_A_ROW = 3
"""So many batches without a finite gradient end a run: one is an accident, several are a run that has diverged."""


class Learner:
    """Trains the policy of `config` by `algorithm`. `check` may raise to give up a step under way."""

    def __init__(
        self,
        config: ExperimentConfig,
        algorithm: Algorithm,
        *,
        checkpoints: Path,
        logs: Path,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        from transformers import AutoTokenizer

        quiet_transformers()
        trainer = config.trainer
        threads = trainer.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        self.config, self.checkpoints, self.logs, self._check = config, checkpoints, logs, check
        self.algorithm = algorithm
        self._skipped = 0  # batches in a row
        self._proven = False  # a checkpoint of this process has been loaded back and found equal
        compute = torch_dtype(config.model.compute_dtype, "model.compute_dtype")
        mixed = config.model.dtype == "float32" and compute is torch.bfloat16
        self.accelerator = Accelerator(
            mixed_precision="bf16" if mixed else "no",
            cpu=not torch.cuda.is_available(),
            log_with=_trackers(trainer.report_to),
            project_dir=logs,
        )
        if trainer.report_to:
            self.accelerator.init_trackers(config.name)
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self.model, notes = load_policy(config.model, seed=config.seed)
        _check_length(config, self.model)
        self.reference = ReferenceModel(self.model) if Pass.REF in algorithm.passes else None
        self.notes: list[str] = [*notes, *trainer.warnings()]
        try:
            self.layout = self._layout()
            self.forward, self.optimizer = self._prepared()
        except ValueError as error:
            raise QuintainError(f"model: {error}") from None
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.streams = self._streams(threads)

    def update(self, groups: list[Group], *, step: int) -> dict[str, float]:
        """Train on a batch: `num_iterations` optimiser updates. The figures to log, by TRL's names."""
        trainer = self.config.trainer
        credited = self.algorithm.rows(groups, version=step)
        work = self._work(credited)
        rate = learning_rate(trainer, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures: dict[str, float] = {"learning_rate": rate, "loss": 0.0, "grad_norm": 0.0, "skipped_steps": 0.0}
        self.model.train()
        for iteration in range(trainer.num_iterations if work.pieces else 0):
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, metrics = accumulate(
                    self._scored,
                    work,
                    backward=self.accelerator.backward,
                    unsynced=lambda: self.accelerator.no_sync(self.forward),
                    check=self._check if iteration == 0 else lambda: None,
                    streams=self.streams,
                )
            except BaseException:
                self.optimizer.zero_grad(set_to_none=True)
                raise
            norm = float(self.accelerator.clip_grad_norm_(parameters_of(self.model), trainer.max_grad_norm))
            figures |= {"loss": loss, "grad_norm": norm, **metric_values(metrics)}
            if not math.isfinite(norm):
                figures["skipped_steps"] = 1.0
                break
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count_skips(work.rows if figures["skipped_steps"] else (), figures["grad_norm"], step)
        trained = sum(len(piece.segments) for piece in work.pieces)
        return {**credited.metrics, **figures, "rows_trained": float(trained), "microbatches": float(len(work.pieces))}

    def score(self, piece: MicroBatch, *, temperature: float) -> TokenLogprobs:
        """What the policy says of a piece's tokens, without a gradient."""
        self.model.eval()
        with torch.no_grad():
            scored: TokenLogprobs = self.forward(piece, temperature=temperature)
        return scored

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. QuintainError where the disk refuses."""
        save_checkpoint(
            self.checkpoints,
            progress,
            self.model,
            self.optimizer,
            self.tokenizer,
            keep=self.config.trainer.save_total_limit,
            prove=not self._proven,
        )
        self._proven = True

    def restore(self, checkpoint: Path) -> Progress:
        """Go back to `checkpoint`."""
        return restore(checkpoint, self.model, self.optimizer)

    def track(self, step: int, metrics: dict[str, float]) -> None:
        """Give a step's figures to the trackers that `trainer.report_to` names."""
        if self.config.trainer.report_to:
            self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """End the trackers and the threads."""
        if self.streams is not None:
            self.streams.close()
        if self.config.trainer.report_to:
            self.accelerator.end_training()

    def _count_skips(self, rows: Sequence[Row], norm: float, step: int) -> None:
        """Keep the skipped batch `rows` of `step` for inspection. QuintainError where it is one of several in a row."""
        self._skipped = self._skipped + 1 if rows else 0
        if not rows:
            return
        self.logs.mkdir(parents=True, exist_ok=True)
        kept = self.logs / f"skipped-{step + 1:06d}.jsonl"
        kept.write_text("".join(json.dumps(_described(row)) + "\n" for row in rows), encoding="utf-8")
        if self._skipped >= SKIPS_IN_A_ROW:
            raise QuintainError(
                f"the gradient of {self._skipped} batches in a row was not finite (norm {norm}), so nothing is learnt"
                f" any more; the last batch is in {kept}: lower trainer.learning_rate, then go on with --resume"
            )

    def _work(self, credited: Rows) -> Work:
        """The batch cut into pieces, with what the loss needs besides the policy's own forward pass."""
        rows = credited.trained(self.algorithm.inert)
        work = Work(self._pieces(rows), rows, credited.totals, self.algorithm.loss, self.share)
        if self.reference is not None and rows:
            with self.reference.model() as reference:
                scored = score(PolicyForward(reference, temperature=self.config.rollout.temperature), work)
            work.ref = {index: tokens.logp for index, tokens in scored.items()}
        if Pass.ENTROPY in self.algorithm.passes:
            found = score(self._scored, work)
            every = torch.cat([tokens.entropy for tokens in found.values() if tokens.entropy is not None])
            work.totals = self.algorithm.settled(work.totals, every)
        return work

    def _pieces(self, rows: tuple[Row, ...]) -> list[MicroBatch]:
        segments = [row.segment for row in rows]
        groups = [row.prefix for row in rows]
        return micro_batches(
            segments,
            groups,
            layout=self.layout,
            max_tokens=self.config.trainer.max_tokens_per_microbatch,
            parity_tokens=self._parity_tokens,
            at_least=self.streams.count if self.streams is not None else 1,
        )

    def _scored(self, piece: MicroBatch) -> TokenLogprobs:
        scored: TokenLogprobs = self.forward(piece)
        return scored

    def _streams(self, threads: int) -> Streams | None:
        count = min(self.config.trainer.streams, threads)
        several = count > 1 and self.share.world == 1 and self.accelerator.device.type == "cpu"
        if not several or draws_random_numbers(self.model):
            return None
        return Streams(count, threads, parameters_of(self.model))

    def _layout(self) -> Layout:
        """The layout that the model allows; says so where it is not the one wanted."""
        wanted = self.config.trainer.layout
        reason = supports_tree(self.model)
        if reason is None or wanted == "padded":
            return "tree" if wanted == "auto" else wanted
        self.notes.append(f"layout: padded rows, because {reason}")
        return "padded"

    def _prepared(self) -> tuple[Any, torch.optim.Optimizer]:
        """The forward module and the optimiser, as Accelerate wraps them."""
        trainer = self.config.trainer
        forward = PolicyForward(self.model, temperature=self.config.rollout.temperature)
        self._parity_tokens = forward.parity_tokens
        optimizer = torch.optim.AdamW(
            parameters_of(self.model),
            lr=trainer.learning_rate,
            weight_decay=trainer.weight_decay,
            betas=(trainer.adam_beta1, trainer.adam_beta2),
            eps=trainer.adam_epsilon,
            fused=True,
        )
        prepared: tuple[Any, Any] = self.accelerator.prepare(forward, optimizer)
        return prepared


def _check_length(config: ExperimentConfig, model: Any) -> None:
    """QuintainError where an episode may be so long that a row's numbers depend on the rows beside it."""
    steady = steady_length(model.config)
    longest = config.rollout.max_length or model.config.get_text_config().max_position_embeddings
    if steady is not None and longest > steady:
        raise QuintainError(
            f"rollout.max_length: beyond {steady} tokens the positions of {config.model.path} depend on the longest row"
            f" of a batch: set it to at most {steady} (it is {longest})"
        )


def _described(row: Row) -> dict[str, Any]:
    """A row for people and scripts to read; a number that is not finite is null."""
    segment = row.segment
    numbers = {"advantage": [row.advantage], "logprobs": segment.logprobs.tolist()}
    finite = {name: [x if math.isfinite(x) else None for x in values] for name, values in numbers.items()}
    return {
        "group": row.prefix,
        "advantage": finite["advantage"][0],
        "ids": segment.ids.tolist(),
        "mask": segment.mask.tolist(),
        "logprobs": finite["logprobs"],
        "versions": segment.versions.tolist(),
    }


def _trackers(wanted: list[str]) -> list[str] | None:
    """What Accelerate takes for no, one or several trackers. QuintainError where one is unknown or not installed."""
    missing = set(wanted) - {tracker.value for tracker in get_available_trackers()}
    if missing:
        raise QuintainError(f"trainer.report_to: install {', '.join(sorted(missing))}, or leave it out")
    return wanted or None
