"""One step's gradient: the same for every cut, layout and number of ranks; failures and zeros change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quintain.config import GRPOConfig, parse_config
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.trainers.algorithms.grpo import GRPO
from quintain.trainers.batches.batch import MicroBatch, micro_batches
from quintain.trainers.losses.metrics import metric_values
from quintain.trainers.model.forward import PolicyForward, TokenLogprobs
from quintain.trainers.ranks import ALONE, Ranks
from quintain.trainers.rows import Rows
from quintain.trainers.streams import Streams, draws_random_numbers
from quintain.trainers.update import Loss, Work, accumulate
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from ..tiny_llama import tiny_llama

TYPES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


def tiny(*, tied: bool = True) -> nn.Module:
    return tiny_llama(0, words=97, length=64, tie_word_embeddings=tied)


def groups(seed: int, *, failing: bool = False) -> list[Group]:
    """Three groups of four one- and two-turn trajectories of ragged lengths."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> list[int]:
        return rng.integers(3, 97, size=n).tolist()  # type: ignore[no-any-return]

    def turn(prompt: list[int]) -> Turn:
        n = int(rng.integers(1, 7))
        logprobs = rng.uniform(-5, -3, n)
        return Turn(prompt, ids(n), logprobs, Finish.STOP, (VersionSpan(0, 0, n),), assistant("x"))

    made = []
    for g in range(3):
        prompt = ids(int(rng.integers(4, 9)))
        rows = []
        for member in range(4):
            turns = [turn(prompt)]
            if rng.random() < 0.5:
                turns.append(turn(ids(2)))
            failure = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "late") if failing and member == 3 else None
            reward = None if failure else float(rng.normal())
            ending = Ending.FAILED if failure else Ending.TERMINATED
            rows.append(Trajectory(f"{g}/{member}", str(g), "k", g, member, 0, tuple(turns), ending, reward, failure))
        made.append(Group(str(g), g, tuple(rows)))
    return made


def config(**changes: Any) -> GRPOConfig:
    text = "model: {path: x}\nenvironment: {name: math}\n"
    return parse_config(text, [f"trainer.{name}={json.dumps(value)}" for name, value in changes.items()]).trainer


def credited_rows(batch: list[Group], trainer: GRPOConfig) -> Rows:
    algorithm = GRPO(trainer, longest=8)
    return algorithm.credit(algorithm.rows(batch, version=0))


def loss_of(trainer: GRPOConfig) -> Loss:
    return partial(GRPO(trainer, longest=8).loss, "policy")


def gradient(
    batch: list[Group], trainer: GRPOConfig, *, layout: str = "tree", max_tokens: int = 10_000,
    ranks: Ranks = ALONE, model: nn.Module | None = None, streams: int = 1, mixed: bool = False,
) -> tuple[Tensor, float, dict[str, float]]:  # fmt: skip
    model = model or tiny()
    credited = credited_rows(batch, trainer)
    rows = credited.rows
    pieces = micro_batches(
        [r.segment for r in rows], [r.prefix for r in rows], layout=layout, max_tokens=max_tokens, at_least=streams
    )
    assert len(pieces) >= streams
    work = Work(pieces, rows, credited.totals, loss_of(trainer), ranks)
    policy = PolicyForward(model, temperature=0.8)

    def forward(piece: MicroBatch) -> TokenLogprobs:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            scored: TokenLogprobs = policy(piece)
        return scored

    beside = Streams(streams, streams, model) if streams > 1 else None
    loss, metrics = accumulate(forward, work, backward=lambda value: value.backward(), streams=beside)
    if beside is not None:
        beside.close()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flat, loss, metric_values(metrics)


def near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm() / b.norm()) <= 1e-5


@pytest.mark.parametrize("loss_type", TYPES)
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut_or_laid_out(loss_type: str) -> None:
    trainer = config(loss_type=loss_type, off_policy_correction="tis")
    batch = groups(1)
    whole, loss, metrics = gradient(batch, trainer)
    assert whole.norm() > 0
    for layout in ("tree", "packed", "padded"):
        for max_tokens in (10_000, 60, 1):
            cut, part, figures = gradient(batch, trainer, layout=layout, max_tokens=max_tokens)
            assert near(cut, whole), (layout, max_tokens)
            assert part == pytest.approx(loss, rel=1e-5, abs=1e-7)
            assert figures == pytest.approx(metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("streams", [2, 3])
@pytest.mark.parametrize("max_tokens", [10_000, 30])
def test_pieces_side_by_side_give_the_same_gradient_and_always_the_same_bits(
    streams: int, max_tokens: int, tied: bool
) -> None:
    trainer = config(top_entropy_quantile=1.0, delta=2.0)
    batch = groups(5)
    whole, loss, metrics = gradient(batch, trainer, model=tiny(tied=tied))
    runs = [gradient(batch, trainer, max_tokens=max_tokens, streams=streams, model=tiny(tied=tied)) for _ in range(5)]
    for found, part, figures in runs:
        assert near(found, whole)
        assert part == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert figures == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        assert torch.equal(found, runs[0][0])


def test_pieces_side_by_side_in_mixed_precision_always_give_the_same_bits() -> None:
    """A CPU's switch for products of bfloat16 factors is one for all threads: none may see another throw it."""
    trainer, batch = config(), groups(5)

    def found() -> Tensor:
        model = tiny_llama(0, words=97, length=64, hidden_size=256, intermediate_size=512)
        return gradient(batch, trainer, max_tokens=30, model=model, streams=2, mixed=True)[0]

    first = found()
    assert first.norm() > 0
    for turn in range(10):
        assert torch.equal(found(), first), turn


@pytest.mark.parametrize("tied", [True, False])
def test_no_thread_holds_a_gradient_of_every_word_for_the_few_that_were_read(tied: bool) -> None:
    """Of 150,000 words it is a third of a gigabyte in each."""
    model = tiny(tied=tied)
    ids = torch.tensor([[3, 5, 3]])
    model(input_ids=ids).logits.square().mean().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    ran: set[str] = set()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.add(op.overloadpacket.__name__)
            return op(*args, **(kwargs or {}))

    streams = Streams(2, 2, model)
    with Recorded():
        streams.add_gradients([lambda: model(input_ids=ids).logits.square().mean()])
    streams.close()
    assert "embedding_dense_backward" not in ran
    assert "embedding" in ran
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert not parameter.grad.is_sparse
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


def test_the_gradient_of_a_tied_embedding_is_added_in_the_memory_of_the_lm_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made, zeros_like = tiny(), list[int](), torch.zeros_like
    streams = Streams(2, 2, model)
    trainer = config()
    credited = credited_rows(groups(5), trainer)
    segments, prefixes = zip(*((row.segment, row.prefix) for row in credited.rows), strict=True)
    piece, *others = micro_batches(segments, prefixes, layout="tree", max_tokens=10_000)
    assert not others

    def seen(like: Tensor, **options: Any) -> Tensor:
        zeros = zeros_like(like, **options)
        if like.shape == model.lm_head.weight.shape:
            made.append(zeros.data_ptr())
        return zeros

    monkeypatch.setattr(torch, "zeros_like", seen)
    work = Work([piece], credited.rows, credited.totals, loss_of(trainer))
    accumulate(PolicyForward(model), work, backward=lambda value: value.backward(), streams=streams)
    streams.close()
    assert made == [model.lm_head.weight.grad.data_ptr()]


def test_a_piece_that_raises_beside_others_adds_nothing_and_is_heard() -> None:
    model = tiny()
    parameters = list(model.parameters())
    streams = Streams(2, 2, model)

    def broken() -> Tensor:
        raise QuintainError("stopped")

    with pytest.raises(QuintainError, match="stopped"):
        streams.add_gradients([lambda: parameters[0].sum(), broken])
    assert all(p.grad is None for p in parameters)
    for _ in range(2):
        streams.add_gradients(
            [lambda: parameters[0].sum(), lambda: 2 * parameters[0].sum(), lambda: parameters[1].sum()]
        )
    streams.close()
    assert torch.equal(parameters[0].grad, torch.full_like(parameters[0], 6.0))
    assert torch.equal(parameters[1].grad, torch.full_like(parameters[1], 2.0))


def test_a_model_with_dropout_is_known_to_draw_random_numbers() -> None:
    assert not draws_random_numbers(tiny())
    assert draws_random_numbers(nn.Sequential(tiny(), nn.Dropout(0.1)))


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_ranks_add_up_to_the_whole_batch(world: int) -> None:
    trainer = config()
    whole, loss, _ = gradient(groups(2), trainer)
    parts = [gradient(groups(2), trainer, max_tokens=30, ranks=Ranks(rank, world)) for rank in range(world)]
    assert near(sum(part[0] for part in parts) / world, whole)  # type: ignore[arg-type]
    assert sum(part[1] for part in parts) == pytest.approx(loss, rel=1e-5)


def test_a_failed_trajectory_changes_neither_advantages_nor_gradient() -> None:
    trainer = config()
    with_failures = groups(3, failing=True)
    without = [Group(g.id, g.index, g.trajectories[:3]) for g in with_failures]
    a, b = (credited_rows(batch, trainer) for batch in (with_failures, without))
    assert all(
        np.array_equal(x.columns["advantage"], y.columns["advantage"]) for x, y in zip(a.rows, b.rows, strict=True)
    )
    assert a.totals == b.totals
    assert near(gradient(with_failures, trainer)[0], gradient(without, trainer)[0])
    assert (a.metrics["failures"], b.metrics["failures"]) == (3, 0)
    assert a.metrics["reward"] == b.metrics["reward"]


def test_rows_without_advantage_may_be_left_out_of_the_forward_pass() -> None:
    trainer = config()
    batch = groups(4)
    same = tuple(
        Trajectory(t.id, t.group, t.task, t.index, t.member, 0, t.turns, t.ending, 1.0) for t in batch[1].trajectories
    )
    batch[1] = Group("1", 1, same)
    credited = credited_rows(batch, trainer)
    kept = credited.trained(GRPO(trainer, longest=8).inert)
    assert {row.prefix for row in kept} == {0, 2}
    pieces = micro_batches([r.segment for r in kept], [r.prefix for r in kept], layout="tree", max_tokens=10_000)
    model = tiny()
    work = Work(pieces, kept, credited.totals, loss_of(trainer))
    accumulate(PolicyForward(model, temperature=0.8), work, backward=lambda value: value.backward())
    left_out = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert near(left_out, gradient(batch, trainer)[0])


def test_a_reward_the_environment_does_not_give_is_said_with_what_it_gives() -> None:
    with pytest.raises(QuintainError, match=r"trainer\.reward_weights: the environment gives no reward 'style'"):
        GRPO(config(reward_weights={"style": 1.0}), longest=8).rows(groups(1), version=0)


RANKS = """
import json, os, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.trainers.test_update import config, credited_rows, groups, loss_of, tiny
from quintain.trainers.batches.batch import micro_batches
from quintain.trainers.model.forward import PolicyForward
from quintain.trainers.ranks import Ranks
from quintain.trainers.update import Work, accumulate
torch.set_num_threads(1)  # no thread is lost in a fork
tiny()  # imports its family
other = os.fork()  # all that is imported, for both ranks
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0 if other else 1, world_size=2)
found = []
for max_tokens in json.loads(sys.argv[3]):
    model, trainer, batch = tiny(), config(), groups(5)
    credited = credited_rows(batch, trainer)
    rows = credited.rows
    pieces = micro_batches(
        [r.segment for r in rows], [r.prefix for r in rows], layout="tree", max_tokens=max_tokens
    )
    forward = DistributedDataParallel(PolicyForward(model, temperature=0.8))
    work = Work(pieces, rows, credited.totals, loss_of(trainer), Ranks(dist.get_rank(), dist.get_world_size()))
    loss, _ = accumulate(forward, work, backward=lambda value: value.backward(), unsynced=forward.no_sync)
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    total = torch.tensor([loss])
    dist.all_reduce(total)
    found.append({"gradient": flat, "loss": total.item(), "pieces": len(pieces)})
if other:
    torch.save(found, sys.argv[2])
dist.destroy_process_group()
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.mark.slow
def test_two_gloo_ranks_have_the_gradient_of_one_with_more_pieces_than_ranks_and_with_fewer(tmp_path: Path) -> None:
    root, out = str(Path(__file__).parents[2]), tmp_path / "out.pt"
    command = [sys.executable, "-c", RANKS, str(tmp_path / "meet"), str(out), json.dumps([10_000, 40])]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, cwd=root, check=True, timeout=240)
    whole, loss, _ = gradient(groups(5), config())
    few, many = torch.load(out)
    assert few["pieces"] == 1
    assert many["pieces"] > 2
    for found in (few, many):
        assert near(found["gradient"], whole)
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
