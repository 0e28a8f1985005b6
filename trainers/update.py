"""One optimiser step's gradient: micro-batches forward and backward, whatever the algorithm's credit was.

Invariant: the summed gradient is that of the whole batch, however it is cut into micro-batches and spread over ranks:
divisors are global counts, every rank makes the same cut and takes every world-th piece, and a rank that has run out
repeats a piece with weight zero, so that collective calls match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintain.trainers.batches.batch import MicroBatch
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metric, Metrics, combine
from quintain.trainers.model.forward import TokenLogprobs
from quintain.trainers.ranks import ALONE, Ranks
from quintain.trainers.rows import Floats, Row, Totals
from quintain.trainers.streams import Streams

Loss = Callable[[LossInputs, Totals], tuple[Tensor, Metrics]]
"""A micro-batch's part of the loss [] and of the metrics (`Algorithm.loss`)."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that is trained: itself, its forward pass and optimiser as Accelerate wraps them, and its threads."""

    model: nn.Module
    forward: Any
    optimizer: torch.optim.Optimizer
    streams: Streams | None

    def scored(self, piece: MicroBatch) -> TokenLogprobs:
        """What the model says of the tokens of `piece`."""
        scored: TokenLogprobs = self.forward(piece)
        return scored


@dataclass(eq=False)
class Work:
    """The rows of an optimiser update, cut into pieces, and the loss of one model on them; `balance` is the weight of
    the loss on how its experts are used, a mean over the pieces by their tokens.

    old: log-probabilities [T] of the proximal policy by the index of the piece, filled at the first pass over the
    batch; where the rows have them as a column, that is taken.
    """

    pieces: Sequence[MicroBatch]
    rows: Sequence[Row]
    totals: Totals
    loss: Loss
    ranks: Ranks = ALONE
    balance: float = 0.0
    old: dict[int, Tensor] = field(default_factory=dict)


def accumulate(
    model: Callable[[MicroBatch], TokenLogprobs],
    work: Work,
    *,
    backward: Callable[[Tensor], None],
    unsynced: Callable[[], AbstractContextManager[None]] = nullcontext,
    check: Callable[[], None] = lambda: None,
    streams: Streams | None = None,
) -> tuple[float, Metrics]:
    """Add the batch's gradient to the parameters'; this rank's part of the loss and of the metrics.

    `backward(loss)` runs the backward pass; `unsynced()` holds back the exchange of gradients between ranks, for all
    pieces but the last; `check` is called between pieces and may raise to give the step up. With `streams`, pieces
    run side by side without these two.
    """
    done: dict[int, tuple[float, Metrics]] = {}
    one_at_a_time = Lock()

    def loss_of(index: int, piece: MicroBatch, counts: bool) -> Tensor:
        with one_at_a_time:
            check()
        scored = model(piece)
        work.old.setdefault(index, scored.logp.detach())
        inputs = loss_inputs(work, index, piece, scored)
        loss, metrics = work.loss(inputs, work.totals)
        if scored.balance is not None:
            loss = loss + work.balance * scored.balance * piece.tokens / sum(each.tokens for each in work.pieces)
            balance = Metric(Kind.MEAN, piece.tokens * float(scored.balance.detach()), piece.tokens)
            metrics = {**metrics, "router_aux_loss": balance}
        if counts:
            done[index] = float(loss.detach()), metrics
        # DDP averages gradients over ranks; the parts are to be summed.
        return loss * (work.ranks.world if counts else 0.0)

    mine = work.ranks.share(work.pieces)
    if streams is not None:
        streams.add_gradients([partial(loss_of, *part) for part in mine])
    else:
        for turn, part in enumerate(mine):
            with nullcontext() if turn == len(mine) - 1 else unsynced():
                backward(loss_of(*part))
    in_order = [done[index] for index in sorted(done)]
    return sum((loss for loss, _ in in_order), 0.0), combine([metrics for _, metrics in in_order])


def score(
    model: Callable[[MicroBatch], TokenLogprobs], pieces: Sequence[MicroBatch], ranks: Ranks
) -> dict[int, TokenLogprobs]:
    """What `model` says of this rank's pieces, by index, without a gradient."""
    with torch.no_grad():
        found = [(index, model(piece), counts) for index, piece, counts in ranks.share(pieces)]
    return {index: scored for index, scored, counts in found if counts}


def by_row(pieces: Sequence[MicroBatch], values: Mapping[int, Tensor]) -> dict[int, Floats]:
    """Values [T] of the tokens of pieces, by the index of the piece, as those of rows, by the index of the row."""
    found: dict[int, Floats] = {}
    for index, flat in values.items():
        piece, array = pieces[index], flat.detach().cpu().numpy()
        row = piece.row.cpu().numpy()
        found |= {segment: array[row == at] for at, segment in enumerate(piece.segments)}
    return found


def loss_inputs(work: Work, index: int, piece: MicroBatch, scored: TokenLogprobs) -> LossInputs:
    """What the loss of piece `index` is computed from: flat tensors [T]."""
    rows = [work.rows[i] for i in piece.segments]
    device = scored.logp.device

    def flat(arrays: Sequence[Floats]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device)

    columns = {name: flat([row.columns[name] for row in rows]) for name in rows[0].columns}
    units, unit = np.unique([row.unit for row in rows], return_inverse=True)
    return LossInputs(
        logp=scored.logp,
        row=piece.row,
        rows=len(rows),
        advantage=columns.pop("advantage", torch.zeros_like(scored.logp, requires_grad=False)),
        mask=torch.ones_like(piece.row, dtype=torch.bool),
        old_logp=columns.pop("old", work.old.get(index)),
        sampler_logp=flat([row.segment.logprobs[row.segment.mask] for row in rows]),
        ref_logp=columns.pop("ref", None),
        entropy=scored.entropy,
        best=scored.best,
        log_mass=scored.log_mass,
        value=scored.value,
        divergence=scored.divergence,
        unit=torch.from_numpy(unit).to(device)[piece.row],
        units=len(units),
        columns=columns,
    )
