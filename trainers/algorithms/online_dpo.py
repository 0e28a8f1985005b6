"""Online DPO (arXiv 2402.04792): pairs out of what the policy samples, the better of a group against the worse.

The losses are those of DPO. A pair is a unit, a side of it all rows of an episode; an episode may be in several pairs,
and its tokens are run once (they share a token tree).

XPO (arXiv 2405.21046) adds how likely the policy is to say what the reference would, which drives it to explore. No
sample here is the reference's: a pair's sides count by how much likelier they are under it, at most once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quintain.config import OnlineDPOConfig
from quintain.trainers.algorithms.base import EpisodeAlgorithm, Pass
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.preference import pair_losses, pair_metrics, pairs_of
from quintain.trainers.rows import BatchEpisodes, Floats, Row, Rows, Totals
from quintain.trajectory import Group


class OnlineDPO(EpisodeAlgorithm[OnlineDPOConfig]):
    """Pairs by reward and the losses on pairs that `config` names."""

    passes = frozenset({Pass.REF})

    def rows(self, data: Sequence[Group], *, version: int) -> Rows:
        """The rows of both sides of each pair; the tokens that are counted are the chosen's."""
        all_rows = super().rows(data, version=version)
        reward = all_rows.episodes.total(self.config.reward_weights)
        pairs = list(self.pairs(reward, all_rows.episodes))
        of_episode: dict[int, list[Row]] = {}
        for row in all_rows.rows:
            of_episode.setdefault(row.trajectory, []).append(row)
        rows = tuple(
            replace(row, unit=unit).having({"chosen": np.float32(episode == pair[0])})
            for unit, pair in enumerate(pairs)
            for episode in pair
            for row in of_episode.get(episode, ())
        )
        totals = all_rows.totals.of(rows)
        chosen = sum(row.tokens for row in rows if row.columns["chosen"].any())
        groups = {int(all_rows.episodes.group[pair[0]]) for pair in pairs}
        lived = reward[~all_rows.episodes.failed]
        metrics = {
            "reward": float(lived.mean()) if len(lived) else 0.0,
            "pairs": float(len(pairs)),
            "frac_groups_tied": 1.0 - len(groups) / max(len(data), 1),
        }
        return Rows(rows, replace(totals, tokens=chosen), {**all_rows.metrics, **metrics}, all_rows.episodes)

    def pairs(self, reward: Floats, episodes: BatchEpisodes) -> Iterator[tuple[int, int]]:
        """(chosen, rejected) episodes of each group; rewards that are no further apart than the margin are a tie."""
        for group in np.unique(episodes.group):
            members = np.flatnonzero((episodes.group == group) & ~episodes.failed)
            best_first = members[np.argsort(-reward[members], kind="stable")].tolist()
            if self.config.pairs == "best_worst":
                candidates = [(best_first[0], best_first[-1])] if best_first else []
            else:
                candidates = [(a, b) for i, a in enumerate(best_first) for b in best_first[i + 1 :]]
            yield from ((a, b) for a, b in candidates if reward[a] - reward[b] > self.config.pair_margin)

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """The mean over pairs."""
        assert inputs.unit is not None
        side = 2 * inputs.unit + (inputs.columns["chosen"] == 0)
        sides = replace(inputs, row=side, rows=2 * inputs.units)
        pairs = pairs_of(sides, ld_alpha=self.config.ld_alpha, log_mass=inputs.log_mass)
        losses = pair_losses(pairs, self.config, mean_chosen_tokens=totals.tokens / max(totals.units, 1))
        drafts = pair_metrics(pairs, self.config.beta)
        if self.config.xpo_alpha > 0 and sides.ref_logp is not None:
            logp, ref = sides.row_sum(sides.logp), sides.row_sum(sides.ref_logp.to(sides.logp.dtype))
            of_reference = (ref - logp.detach()).clamp(max=0.0).exp()
            bonus = self.config.xpo_alpha * (of_reference * logp).view(-1, 2).mean(1)
            drafts["loss/xpo"] = draft(Kind.MEAN, bonus, torch.ones_like(bonus, dtype=torch.bool))
            losses = losses + bonus
        return losses.sum() / max(totals.units, 1), fetched(drafts)
