"""The learning side of a run: the models, their optimisers, and what is done to them between two batches.

A step: data become rows, passes without a gradient fill columns, credit fills more, the loss reads them. Invariants:
- weights change in one place, after all gradients of a minibatch are in, and never by a gradient that is not finite;
- a stop is possible between the micro-batches of a step's first update: it drops the gradient and leaves the weights
  of the last whole step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from quintain.config import DistillationConfig, ExperimentConfig, PPOConfig
from quintain.config.ppo import CRITIC
from quintain.failure import QuintainError
from quintain.files import write_whole
from quintain.rollout.chat.load import quiet_transformers
from quintain.rollout.engines.contract import steady_length
from quintain.rollout.engines.dtypes import torch_dtype
from quintain.trainers.algorithms.base import Algorithm, Data, Pass
from quintain.trainers.batches.batch import Layout, MicroBatch, micro_batches
from quintain.trainers.checkpoint import Progress, restore, save_checkpoint
from quintain.trainers.examples import padding
from quintain.trainers.losses.metrics import Metrics, combine, metric_values
from quintain.trainers.model.forward import (
    ModelForward,
    PolicyForward,
    TokenLogprobs,
    plain_model,
    routes,
    supports_tree,
)
from quintain.trainers.model.policy import ReferenceModel, add_value_head, load_policy, published
from quintain.trainers.model.teacher import DistillingForward, RemoteTeacher, load_teacher
from quintain.trainers.model.value import ValueForward, load_critic
from quintain.trainers.passes import Passes
from quintain.trainers.ranks import ALONE, Ranks, alone, number, shard
from quintain.trainers.rows import Row, Rows
from quintain.trainers.schedule import learning_rate, optimizer_of
from quintain.trainers.streams import Streams, draws_random_numbers, parameters_of
from quintain.trainers.update import Trained, Work, accumulate

SKIPS_IN_A_ROW = 3
"""So many batches without a finite gradient end a run: one is an accident, several are a run that has diverged."""


class Learner(Generic[Data]):
    """Trains the models that `algorithm` names. `check` may raise to give up a step under way.

    Of several `ranks` the others `follow`: whatever rank 0 does that needs them, it tells them first.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        algorithm: Algorithm[Data, Any],
        *,
        checkpoints: Path,
        logs: Path,
        check: Callable[[], None] = lambda: None,
        ranks: Ranks = ALONE,
    ) -> None:
        from transformers import AutoTokenizer

        quiet_transformers()
        trainer = config.trainer
        self._threads = trainer.threads or max(1, (os.cpu_count() or 1) // ranks.world)
        self.config, self.checkpoints, self.logs, self.ranks = config, checkpoints, logs, ranks
        # Others would wait for ever within a step that one gave up.
        self._check = (lambda: None) if ranks.several else check
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
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        torch.set_num_threads(self._threads)  # after Accelerate, which sets it too where there are several ranks
        if trainer.report_to:
            self.accelerator.init_trackers(config.name)
        self._shards = ranks.several and trainer.parallel == "fsdp"
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self.model, notes = load_policy(config.model, seed=config.seed, head=trainer.head)
        _check_length(config, self.model)
        fresh = config.model.lora is not None and config.model.lora.path is None
        refers = trainer.needs_reference and not algorithm.passes.isdisjoint({Pass.REF, Pass.TEACHER})
        apart = not fresh or trainer.reference_follows
        self.reference = ReferenceModel(self.model, apart=apart) if refers else None
        self.notes: list[str] = [*notes, *trainer.warnings()]
        if config.offline is None and routes(plain_model(self.model)):
            self.notes.append(
                "model: it chooses experts anew in training, and not always those that sampled (routing is not"
                " replayed): watch sampling/sampling_logp_difference"
            )
        if isinstance(trainer, PPOConfig) and trainer.value_head:
            add_value_head(self.model)
        critic = load_critic(config, self.tokenizer) if CRITIC in algorithm.trains else None
        self.teacher = load_teacher(config, self.tokenizer) if isinstance(trainer, DistillationConfig) else None
        try:
            self.layout = self._layout([m for m in (self.model, critic, self.teacher) if isinstance(m, nn.Module)])
            forward = self._forward()
            self._parity_tokens = forward.parity_tokens
            self.trained = {algorithm.trains[0]: self._prepared(self.model, forward)}
            if critic is not None:
                self.trained[CRITIC] = self._prepared(critic, ValueForward(critic))
            self.passes = Passes(
                algorithm.passes | ({Pass.OLD} if trainer.minibatches > 1 else set()),
                self.trained,
                reference=None if self.reference is None else (self.reference, self._referring(self.reference.frozen)),
                teacher=self._teaching(),
                pieces=self._pieces,
                ranks=ranks,
            )
        except ValueError as error:
            raise QuintainError(f"model: {error}") from None

    def update(self, data: Data, *, step: int) -> dict[str, float]:
        """Train on a batch: an optimiser update of each trained model for each minibatch, as often as the batch is gone
        over. The figures to log, by TRL's names."""
        self._tell("update", step, None if self.config.dataset is None else data)
        trainer = self.config.trainer
        rows = self.algorithm.credit(self.passes.fill(self.algorithm.rows(data, version=step)))
        rate = learning_rate(trainer, step)
        figures: dict[str, float] = {"learning_rate": rate, "loss": 0.0, "grad_norm": 0.0, "skipped_steps": 0.0}
        rates = {name: trainer.rate_of(name, rate, step) for name in self.algorithm.trains}
        for name, trained in self.trained.items():
            trained.model.train()
            for group in trained.optimizer.param_groups:
                group["lr"] = rates[name] or 0.0
        trains = [name for name, of_model in rates.items() if of_model is not None]
        works: list[dict[str, Work]] = []
        updated, skipped, norm = False, None, 0.0
        for epoch in range(trainer.epochs):
            if epoch == 0 or trainer.minibatches > 1:
                dealt = rows.dealt(trainer.minibatches, seed=(self.config.seed, step, epoch))
                works = [found for part in dealt if (found := self._works(part, trains))]
            if epoch == 0:
                first = [work[trains[0]] for work in works]
                figures["rows_trained"] = float(sum(len(work.rows) for work in first))
                figures["microbatches"] = float(sum(len(work.pieces) for work in first))
            losses: dict[str, list[tuple[float, Metrics]]] = {name: [] for name in trains}
            norms: dict[str, float] = {}
            for name, work in [pair for each in works for pair in each.items()]:
                losses[name].append(self._gradient(self.trained[name], work, check=not updated))
                norms[name] = norm = self._stepped(self.trained[name])
                updated = True
                if not math.isfinite(norm):
                    skipped = work
                    break
            for name in norms:
                at = "" if name == self.algorithm.trains[0] else f"{name}/"
                values = {"loss": float(np.mean([loss for loss, _ in losses[name]])), "grad_norm": norms[name]}
                values |= metric_values(combine([metrics for _, metrics in losses[name]]))
                figures |= {f"{at}{key}": value for key, value in values.items()}
            if skipped is not None:
                figures["skipped_steps"] = 1.0
                break
        if self.reference is not None and trainer.reference_follows and (share := trainer.follows(step + 1)):
            self.reference.follow(share)
        self._count_skips(skipped.rows if skipped is not None else (), norm, step)
        figures = {**rows.metrics, **figures}
        self.algorithm.remember(figures)
        return figures

    def measure(self, data: Data) -> dict[str, float]:
        """The loss of the first trained model on all of `data`, and its metrics, without a gradient."""
        self._tell("measure", data)
        name = self.algorithm.trains[0]
        rows = self.algorithm.credit(self.passes.fill(self.algorithm.rows(data, version=-1)))
        work, trained = self._works(rows, [name]).get(name), self.trained[name]
        if work is None:
            return dict(rows.metrics)
        trained.model.eval()
        with torch.no_grad():
            loss, metrics = self._of_all(accumulate(trained.scored, work, backward=lambda _: None, check=self._check))
        return {"loss": loss, **rows.metrics, **metric_values(metrics)}

    def score(self, piece: MicroBatch, *, temperature: float) -> TokenLogprobs:
        """What the policy says of a piece's tokens, without a gradient."""
        self._tell("score", piece, temperature)
        self.model.eval()
        with torch.no_grad():
            scored: TokenLogprobs = alone(self.trained["policy"].forward)(piece, temperature=temperature)
        return scored

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights to sample with (`model.policy.published`)."""
        self._tell("weights")
        yield from published(self.model)

    def follow(self, batch: Callable[[int], Data] | None) -> None:
        """Do what rank 0 says until it has nothing more; `batch` gives that of a step, where rank 0 does not."""
        end: tuple[Any, ...] = ()
        while (said := self.ranks.told(end)) != end:
            with suppress(QuintainError):  # rank 0 raises it too, and it is for it to tell
                match said:
                    case ("update", step, data):
                        self.update(data if batch is None else batch(step), step=step)
                    case ("measure", data):
                        self.measure(data)
                    case ("score", piece, temperature):
                        self.score(piece, temperature=temperature)
                    case ("weights",):
                        list(self.weights())
                    case ("save", progress):
                        self.save(progress)
                    case ("restore", checkpoint):
                        self.restore(checkpoint)

    def _tell(self, *what: Any) -> None:
        if self.ranks.leads:
            self.ranks.told(what)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. QuintainError where the disk refuses."""
        progress = replace(progress, state=dict(self.algorithm.state))
        self._tell("save", progress)
        save_checkpoint(
            self.checkpoints,
            progress,
            self._saved(),
            self.tokenizer,
            keep=self.config.trainer.save_total_limit,
            prove=not self._proven,
            ranks=self.ranks,
        )
        self._proven = True

    def restore(self, checkpoint: Path) -> Progress:
        """Go back to `checkpoint`."""
        self._tell("restore", checkpoint)
        progress = restore(checkpoint, self._saved(), self.ranks)
        self.algorithm.state.update(progress.state)
        return progress

    def track(self, step: int, metrics: dict[str, float]) -> None:
        """Give a step's figures to the trackers that `trainer.report_to` names."""
        if self.config.trainer.report_to:
            self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """End the trackers and the threads, and let the other ranks go."""
        with suppress(RuntimeError):  # they may be gone
            self._tell()
        for trained in self.trained.values():
            if trained.streams is not None:
                trained.streams.close()
        if self.config.trainer.report_to:
            self.accelerator.end_training()

    def _count_skips(self, rows: Sequence[Row], norm: float, step: int) -> None:
        """Keep the skipped batch `rows` of `step` for inspection. QuintainError where it is one of several in a row."""
        self._skipped = self._skipped + 1 if rows else 0
        if not rows or not self.ranks.leads:
            return
        kept = self.logs / f"skipped-{step + 1:06d}.jsonl"
        write_whole(kept, "".join(json.dumps(_described(row)) + "\n" for row in rows))
        if self._skipped >= SKIPS_IN_A_ROW:
            raise QuintainError(
                f"the gradient of {self._skipped} batches in a row was not finite (norm {norm}), so nothing is learnt"
                f" any more; the last batch is in {kept}: lower trainer.learning_rate, then go on with --resume"
            )

    def _gradient(self, trained: Trained, work: Work, *, check: bool) -> tuple[float, Metrics]:
        """Put the gradient of `work` in place of the parameters'; the loss and the metrics."""
        trained.optimizer.zero_grad(set_to_none=True)
        try:
            part = accumulate(
                trained.scored,
                work,
                backward=self.accelerator.backward,
                unsynced=lambda: self.accelerator.no_sync(trained.forward),
                check=self._check if check else lambda: None,
                streams=trained.streams,
            )
            return self._of_all(part)
        except BaseException:
            trained.optimizer.zero_grad(set_to_none=True)
            raise

    def _of_all(self, part: tuple[float, Metrics]) -> tuple[float, Metrics]:
        """The loss and the metrics of all ranks."""
        parts = self.ranks.gathered(part)
        return sum((loss for loss, _ in parts), 0.0), combine([metrics for _, metrics in parts])

    def _stepped(self, trained: Trained) -> float:
        """Update the weights, unless the gradient is not finite; its norm before it was scaled down."""
        largest = self.config.trainer.max_grad_norm
        norm = number(self.accelerator.clip_grad_norm_(parameters_of(trained.model), largest))
        if math.isfinite(norm):
            trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        return norm

    def _works(self, rows: Rows, trains: Sequence[str]) -> dict[str, Work]:
        """A minibatch cut into pieces, with the loss of each model of `trains`; empty where there is nothing to train
        on."""
        live = rows.trained(self.algorithm.inert)
        pieces, balance = self._pieces(live), self.config.trainer.router_aux_loss_coef
        return {
            name: Work(pieces, live, rows.totals, partial(self.algorithm.loss, name), self.ranks, balance)
            for name in (trains if pieces else ())
        }

    def _referring(self, frozen: nn.Module | None) -> Any:
        """The forward pass of the reference: that of the policy itself where only its adapter is off."""
        if frozen is None:
            return alone(self.trained["policy"].forward)
        forward = PolicyForward(frozen, temperature=self.config.rollout.temperature)
        return self._sharded(forward) if self._shards else forward

    def _teaching(self) -> RemoteTeacher | PolicyForward | None:
        """The teacher, or its forward pass where it is on this machine."""
        if isinstance(self.teacher, nn.Module):
            return PolicyForward(self.teacher, temperature=self.config.rollout.temperature)
        return self.teacher

    def _sharded(self, forward: ModelForward) -> Any:
        """`forward` with its parameters sharded over the ranks."""
        shard(forward, plain_model(forward.model)._no_split_modules or ())
        return self.accelerator.prepare_model(forward, evaluation_mode=True)  # autocast, and no DDP

    def _pieces(self, rows: Sequence[Row]) -> list[MicroBatch]:
        streams = [trained.streams.count for trained in self.trained.values() if trained.streams is not None]
        return micro_batches(
            [row.segment for row in rows],
            [row.prefix for row in rows],
            units=[row.unit for row in rows],
            layout=self.layout,
            max_tokens=self.config.trainer.max_tokens_per_microbatch,
            parity_tokens=self._parity_tokens,
            at_least=max(streams, default=1),
        )

    def _saved(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        models = {name: (self.trained[name].model, self.trained[name].optimizer) for name in self.algorithm.trains}
        if self.config.trainer.reference_follows and self.reference is not None:
            frozen = self.reference.frozen
            assert frozen is not None
            models["reference"] = (frozen, torch.optim.SGD(frozen.parameters(), lr=0.0))  # it has no state
        return models

    def _streams(self, model: nn.Module) -> Streams | None:
        count = min(self.config.trainer.streams, self._threads)
        several = count > 1 and not self.ranks.several and self.accelerator.device.type == "cpu"
        if not several or self.config.trainer.noise or draws_random_numbers(model):
            return None
        return Streams(count, self._threads, model)

    def _layout(self, models: Sequence[nn.Module]) -> Layout:
        """The layout that all `models` allow; says so where it is not the one wanted."""
        wanted = self.config.trainer.layout
        reason = next((found for model in models if (found := supports_tree(model)) is not None), None)
        if reason is None or wanted == "padded":
            return "tree" if wanted == "auto" else wanted
        self.notes.append(f"layout: padded rows, because {reason}")
        return "padded"

    def _forward(self) -> ModelForward:
        """The forward pass of the first trained model."""
        trainer, temperature = self.config.trainer, self.config.rollout.temperature
        if isinstance(trainer, DistillationConfig) and trainer.beta is not None:
            assert isinstance(self.teacher, nn.Module)
            return DistillingForward(self.model, self.teacher, temperature=temperature, beta=trainer.beta)
        if trainer.head == "lm":
            return PolicyForward(
                self.model,
                temperature=temperature,
                mass=trainer.needs_mass,
                noise=trainer.noise,
                balance=trainer.router_aux_loss_coef > 0,
            )
        # By it transformers' classifiers, and the verifier `reward_model`, find the last token of a row.
        plain_model(self.model).config.pad_token_id = self.tokenizer.pad_token_id = padding(self.tokenizer)
        return ValueForward(self.model)

    def _prepared(self, model: nn.Module, forward: ModelForward) -> Trained:
        """`model` with the optimiser of its own, both as Accelerate wraps them; `forward` runs it on a piece."""
        sharded = self._sharded(forward) if self._shards else None  # before the optimiser sees the parameters
        optimizer = optimizer_of(self.config.trainer, model)
        if sharded is not None:
            return Trained(model, sharded, self.accelerator.prepare_optimizer(optimizer), None)
        prepared: tuple[Any, Any] = self.accelerator.prepare(forward, optimizer)
        return Trained(model, *prepared, self._streams(model))


def _check_length(config: ExperimentConfig, model: Any) -> None:
    """QuintainError where an episode may be so long that a row's numbers depend on the rows beside it."""
    steady = steady_length(model.config)
    given = {"trainer": config.reads.max_length} if config.reads else {}
    given |= {} if config.offline else {"rollout": config.rollout.max_length}
    for field, limit in given.items():
        longest = limit or model.config.get_text_config().max_position_embeddings
        if steady is not None and longest > steady:
            raise QuintainError(
                f"{field}.max_length: beyond {steady} tokens the positions of {config.model.path} depend on the longest"
                f" row of a batch: set it to at most {steady} (it is {longest})"
            )


def _described(row: Row) -> dict[str, Any]:
    """A row for people and scripts to read; a number that is not finite is null."""
    segment = row.segment
    numbers = {"logprobs": segment.logprobs, **row.columns}
    return {
        "group": row.prefix,
        "ids": segment.ids.tolist(),
        "mask": segment.mask.tolist(),
        "versions": segment.versions.tolist(),
        **{name: [x if math.isfinite(x) else None for x in values.tolist()] for name, values in numbers.items()},
    }


def _trackers(wanted: list[str]) -> list[str] | None:
    """What Accelerate takes for no, one or several trackers. QuintainError where one is unknown or not installed."""
    missing = set(wanted) - {tracker.value for tracker in get_available_trackers()}
    if missing:
        raise QuintainError(f"trainer.report_to: install {', '.join(sorted(missing))}, or leave it out")
    return wanted or None
