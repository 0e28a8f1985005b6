"""On-policy distillation: the policy samples, and learns at its own tokens what a teacher would have said there.

Either the reverse KL at the tokens that were sampled, as a policy gradient (a teacher behind a server is enough), or a
divergence between whole distributions (GKD, arXiv 2306.13649; MiniLLM's reverse KL, 2306.08543), then also at the
completions of a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quintain.config import DistillationConfig
from quintain.config.loss import LossOptions
from quintain.failure import QuintainError
from quintain.trainers.algorithms.base import Algorithm, Pass
from quintain.trainers.estimators import discounted
from quintain.trainers.examples import Example, example_rows
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.policy import policy_loss, reduce
from quintain.trainers.rows import Rows, Totals, episode_rows, episode_spans, per_row
from quintain.trajectory import Group


class Distillation(Algorithm[Sequence[Group | Example], DistillationConfig]):
    """What a teacher says of the policy's tokens as their credit."""

    def __init__(self, config: DistillationConfig, *, longest: int) -> None:
        super().__init__(config, longest=longest)
        self.passes = frozenset({Pass.OLD, Pass.TEACHER} if config.beta is None else ())
        self._loss = LossOptions(loss_type="dapo", epsilon=config.epsilon, epsilon_high=config.epsilon_high)

    def rows(self, data: Sequence[Group | Example], *, version: int) -> Rows:
        """A row for each segment that was sampled, and one for each example of a data set."""
        groups = [entry for entry in data if isinstance(entry, Group)]
        rows = episode_rows(groups, self.config, version=version, longest=self.longest)
        start = len(groups) + len(rows.rows)  # beyond every number of a group or a row
        shown = example_rows([entry for entry in data if isinstance(entry, Example)])
        every = (
            *rows.rows,
            *(replace(row, unit=start + row.unit, prefix=start + row.prefix) for row in shown.rows),
        )
        return replace(rows, rows=every, totals=rows.totals.of(every))

    def credit(self, rows: Rows) -> Rows:
        """A token's advantage is log(teacher / policy), and γ times what follows of the episode; the environment's
        rewards are logged and not learned from."""
        lived = rows.episodes.total(self.config.reward_weights)[~rows.episodes.failed]
        logged = {"reward": float(lived.mean()), "reward_std": float(lived.std())} if len(lived) else {}
        if self.config.beta is not None or not rows.rows:
            return rows.having([{} for _ in rows.rows], logged)
        teacher, old = (
            np.concatenate([row.columns[name] for row in rows.rows]).astype(np.float64)
            for name in (Pass.TEACHER, Pass.OLD)
        )
        broken = int((~np.isfinite(teacher)).sum())
        if broken:
            raise QuintainError(
                f"teacher: it gives no finite log-probability of {broken} of {len(teacher)} tokens: are its weights"
                " whole, and does it know every token of the policy's?"
            )
        advantage = teacher - old
        logged["reverse_kl"] = -float(advantage.mean())
        if self.config.gamma > 0:
            for span in episode_spans(rows.rows).values():
                advantage[span] = discounted(advantage[span], self.config.gamma)
        parts = per_row(advantage.astype(np.float32), rows.rows)
        return rows.having([{"advantage": part} for part in parts], logged)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The clipped policy loss, or the divergence, a mean over the batch's tokens."""
        if self.config.beta is None:
            per_token = policy_loss(inputs, self._loss)
            return reduce(per_token, inputs, self._loss.loss_type, totals), per_token.metrics
        assert inputs.divergence is not None
        drafts = {"divergence": draft(Kind.MEAN, inputs.divergence, inputs.mask)}
        if inputs.entropy is not None:
            drafts["entropy"] = draft(Kind.MEAN, inputs.entropy, inputs.mask)
        return torch.where(inputs.mask, inputs.divergence, 0.0).sum() / max(totals.tokens, 1), fetched(drafts)
