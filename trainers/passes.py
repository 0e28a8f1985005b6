"""The passes without a gradient over a batch's rows, before credit: each fills the column of its name.

Invariant: every rank runs its share of the pieces, and has the columns of all rows afterwards, which credit needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from torch import Tensor

from quintain.config.ppo import CRITIC
from quintain.trainers.algorithms.base import NEXT_VALUE, Pass
from quintain.trainers.batches.batch import MicroBatch
from quintain.trainers.model.forward import TokenLogprobs
from quintain.trainers.model.policy import ReferenceModel
from quintain.trainers.model.teacher import RemoteTeacher
from quintain.trainers.model.value import followed
from quintain.trainers.ranks import Ranks, alone
from quintain.trainers.rows import Floats, Row, Rows
from quintain.trainers.update import Trained, by_row, score


class Passes:
    """Those that are `wanted`, by the models that are `trained`, the reference and its forward pass, and the teacher
    (or its forward pass; None: the reference, or the policy itself, of rows that have a segment for it). `pieces` cuts
    rows into what runs at once."""

    def __init__(
        self,
        wanted: Set[Pass],
        trained: Mapping[str, Trained],
        *,
        reference: tuple[ReferenceModel, Any] | None,
        teacher: Any,
        pieces: Callable[[Sequence[Row]], list[MicroBatch]],
        ranks: Ranks,
    ) -> None:
        self._wanted, self._trained, self._reference, self._teacher = wanted, trained, reference, teacher
        self._pieces, self._ranks = pieces, ranks

    def fill(self, rows: Rows) -> Rows:
        """`rows` with the columns of those that are not masked."""
        live = [i for i, row in enumerate(rows.rows) if not row.masked]
        if not self._wanted or not live:
            return rows
        unmasked = [rows.rows[i] for i in live]
        pieces = self._pieces(unmasked)
        columns: list[dict[str, Floats]] = [{} for _ in rows.rows]
        mine = {str(name): by_row(pieces, values) for name, values in self._scores(pieces).items()}
        if Pass.TEACHER in self._wanted:
            mine[Pass.TEACHER] = self._taught(unmasked, pieces)
        if Pass.VALUE in self._wanted:
            mine |= self._values(unmasked)
        for found in self._ranks.gathered(mine):
            for name, of_rows in found.items():
                for at, column in of_rows.items():
                    columns[live[at]][name] = column
        return rows.having(columns)

    def _taught(self, rows: Sequence[Row], pieces: Sequence[MicroBatch]) -> dict[int, Floats]:
        """What the teacher says of the tokens [T] of each of this rank's rows."""
        if isinstance(self._teacher, RemoteTeacher):
            mine = range(self._ranks.rank, len(rows), self._ranks.world)
            return dict(zip(mine, self._teacher.of([rows[i] for i in mine]), strict=True))
        if self._teacher is None:
            told = [i for i, row in enumerate(rows) if row.teacher is not None]
            pieces = self._pieces([replace(row, segment=row.teacher) for row in rows if row.teacher is not None])
            policy = alone(self._trained["policy"].forward)
            scored = score(policy, pieces, self._ranks) if self._reference is None else self._referred(pieces)
            found = by_row(pieces, {index: tokens.logp for index, tokens in scored.items()})
            return {told[at]: column for at, column in found.items()}
        scored = score(self._teacher, pieces, self._ranks)
        return by_row(pieces, {index: tokens.logp for index, tokens in scored.items()})

    def _values(self, rows: Sequence[Row]) -> dict[str, dict[int, Floats]]:
        """What the critic expects before each policy token [T] of `rows`, and before what follows it."""
        pieces = self._pieces([replace(row, segment=followed(row.segment)) for row in rows])
        critic = self._trained.get(CRITIC, self._trained["policy"])  # its own, or a head on the policy's trunk
        scored = score(alone(critic.forward), pieces, self._ranks)
        values = by_row(pieces, {i: tokens.value for i, tokens in scored.items() if tokens.value is not None})
        return {
            Pass.VALUE: {at: value[:-1] for at, value in values.items()},
            NEXT_VALUE: {at: value[1:] for at, value in values.items()},
        }

    def _referred(self, pieces: Sequence[MicroBatch]) -> dict[int, TokenLogprobs]:
        """What the reference says of the pieces' tokens, by the index of the piece."""
        assert self._reference is not None
        model, forward = self._reference
        with model.in_place():
            return score(forward, pieces, self._ranks)

    def _scores(self, pieces: Sequence[MicroBatch]) -> dict[Pass, dict[int, Tensor]]:
        """What the reference and the policy say of the tokens [T] of the pieces, by the index of the piece."""
        found: dict[Pass, dict[int, Tensor]] = {}
        for trained in self._trained.values():
            trained.model.eval()
        if Pass.REF in self._wanted:
            found[Pass.REF] = {index: tokens.logp for index, tokens in self._referred(pieces).items()}
        if self._wanted & {Pass.OLD, Pass.ENTROPY}:
            scored = score(alone(self._trained["policy"].forward), pieces, self._ranks)
            found[Pass.OLD] = {index: tokens.logp for index, tokens in scored.items()}
            found[Pass.ENTROPY] = {i: tokens.entropy for i, tokens in scored.items() if tokens.entropy is not None}
        return {name: values for name, values in found.items() if name in self._wanted}
