"""Nash-MD (arXiv 2312.00886): the policy learns to beat what it plays against, and is held to the reference.

It plays against itself: an answer's chance of winning is counted over the other members of its group, a tie as half.
That is the paper's mixture of policy and reference with all weight on the policy: the engine samples from no other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quintain.config import NashMDConfig
from quintain.trainers.algorithms.base import Pass
from quintain.trainers.estimators import win_rates
from quintain.trainers.losses.inputs import LossInputs, cleaned
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.policy import always_logged
from quintain.trainers.rows import Row, Rows, Totals, episode_rows
from quintain.trajectory import Group


class NashMD:
    """REINFORCE on the chance of winning; `longest` is the completion limit in tokens."""

    trains = ("policy",)

    def __init__(self, config: NashMDConfig, *, longest: int) -> None:
        self.config, self.longest = config, longest
        self.passes = frozenset({Pass.REF} if config.needs_reference else ())

    def rows(self, data: Sequence[Group], *, version: int) -> Rows:
        """A row for each segment."""
        return episode_rows(data, self.config, version=version, longest=self.longest)

    def credit(self, rows: Rows) -> Rows:
        """P(win) − 1/2, the half being what an answer like the others' has."""
        episodes = rows.episodes
        reward = episodes.total(self.config.reward_weights)
        lived = reward[~episodes.failed]
        wins = win_rates(reward, episodes.group, failed=episodes.failed)
        return rows.crediting(wins - 0.5, {"reward": float(lived.mean()) if len(lived) else 0.0})

    def inert(self, row: Row) -> bool:
        """Without an advantage and a reference there is no gradient."""
        return not self.config.needs_reference and not row.columns["advantage"].any()

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """Mean over rows of β·Σ sg[ℓ − ref]·ℓ − (P − 1/2)·Σ ℓ, as in TRL: the KL's gradient by REINFORCE, too."""
        x = cleaned(inputs)
        loss = -x.advantage * x.logp
        drafts = always_logged(x, x.logp - x.proximal_logp, None, per_row=False)
        if x.ref_logp is not None:
            log_ratio = (x.logp - x.ref_logp).detach()
            loss = loss + self.config.beta * log_ratio * x.logp
            drafts["kl"] = draft(Kind.MEAN, log_ratio, x.mask)
        return x.row_sum(loss).sum() / max(totals.rows, 1), fetched(drafts)
