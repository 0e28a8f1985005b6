"""SDPO (arXiv 2601.20802): the policy learns from what it would have said, had it been told how its attempt went.

The teacher is a copy that follows the policy, or the policy itself; its prompt says besides what the environment
answered at the end, and an attempt of the group that succeeded. What is learned is the reverse KL at the tokens that
were sampled. An episode about which there is nothing to tell teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintain.config import SDPOConfig
from quintain.rollout.chat.base import Chat
from quintain.trainers.algorithms.base import EpisodeAlgorithm, Pass
from quintain.trainers.batches.tree import shared_prefix
from quintain.trainers.losses.inputs import LOG_BOUND, LossInputs, cleaned
from quintain.trainers.losses.metrics import Kind, Metrics, draft, fetched
from quintain.trainers.losses.policy import always_logged
from quintain.trainers.rows import Row, Rows, Totals, credited
from quintain.trajectory import Group, Segment, Trajectory

SOLUTION = "\nCorrect solution:\n\n{}\n\n"
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}\n\n"
TOLD = "{}{}{}\n\nCorrectly solve the original question.\n"
"""The paper's words, through TRL: the prompt's last message, an attempt that succeeded, what the environment said."""


class SDPO(EpisodeAlgorithm[SDPOConfig]):
    """Self-distillation from feedback; `chat` gives what renders. What the teacher says of tokens is in its column."""

    passes = frozenset({Pass.OLD, Pass.TEACHER})

    def __init__(self, config: SDPOConfig, *, longest: int, chat: Callable[[], Chat]) -> None:
        super().__init__(config, longest=longest)
        self.chat = chat

    def rows(self, data: Sequence[Group], *, version: int) -> Rows:
        """A row for each segment, with the teacher's where there is something to tell it."""
        rows = super().rows(data, version=version)
        members = [member for _, member in credited(data)]
        told = self._told(members, rows)
        made = tuple(replace(row, teacher=self._teacher(row, members[row.trajectory], told)) for row in rows.rows)
        lived = rows.episodes.total(self.config.reward_weights)[~rows.episodes.failed]
        share = len({row.trajectory for row in made if row.teacher is not None}) / max(len(lived), 1)
        logged = {"reward": float(lived.mean()) if len(lived) else 0.0, "self_distillation/reprompt_fraction": share}
        return replace(rows, rows=made, metrics={**rows.metrics, **logged})

    def _told(self, members: Sequence[Trajectory], rows: Rows) -> dict[int, str]:
        """What the last message of its prompt is for the teacher of each episode that it can be told something of."""
        good = rows.episodes.total(self.config.reward_weights) >= self.config.success_reward_threshold
        found = {}
        for n, member in enumerate(members):
            if not member.turns or not member.prompt or member.prompt[-1].role != "user" or member.failure is not None:
                continue
            others = np.flatnonzero(good & (rows.episodes.group == rows.episodes.group[n]))
            solution = next((_said(members[i]) for i in others.tolist() if i != n), "")
            feedback = "" if good[n] or not self.config.include_environment_feedback else _feedback(member)
            if solution or feedback:
                found[n] = TOLD.format(
                    member.prompt[-1].text,
                    SOLUTION.format(solution) if solution else "",
                    FEEDBACK.format(feedback) if feedback else "",
                )
        return found

    def _teacher(self, row: Row, member: Trajectory, told: dict[int, str]) -> Segment | None:
        """The row after the prompt that the teacher is given; None where the row does not begin as the episode did."""
        if row.trajectory not in told or row.masked:
            return None
        first, segment = member.turns[0].prompt_ids, row.segment
        chat, *before, last = self.chat(), *member.prompt
        plain = chat.first(member.prompt)
        more = chat.first((*before, replace(last, content=told[row.trajectory])))
        shared = shared_prefix(plain, more)
        tail = len(plain) - shared  # the end of the message, and what asks for an answer; tools stand before it
        cut = len(first) - tail
        if cut < 0 or not np.array_equal(first[cut:], plain[shared:]):
            return None
        if (
            not np.array_equal(segment.ids[: len(first)], first)
            or cut + len(more) - shared > self.config.max_reprompt_len
        ):
            return None
        ids = np.concatenate([first[:cut], more[shared:], segment.ids[len(first) :]]).astype(np.int32)
        added = len(ids) - len(segment.ids)
        rest = {f.name: getattr(segment, f.name) for f in fields(segment) if f.name != "ids"}
        return Segment(ids, **{name: _longer(values, len(first), added) for name, values in rest.items()})

    def inert(self, row: Row) -> bool:
        """A row without a teacher has no loss."""
        return row.teacher is None

    def loss(self, model: str, inputs: LossInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """Mean over rows of the token mean of sg[min(ρ, c)·(ℓ − teacher)]·ℓ, which has the gradient of the KL."""
        x = cleaned(inputs)
        log_ratio, apart = x.logp - x.proximal_logp, (x.logp - x.columns[Pass.TEACHER]).detach()
        ratio = log_ratio.detach().clamp(-LOG_BOUND, LOG_BOUND).exp().clamp(max=self.config.distillation_is_clip)
        drafts = always_logged(x, log_ratio, None, per_row=False)
        drafts["reverse_kl"] = draft(Kind.MEAN, apart, x.mask)
        loss = torch.where(x.mask, ratio * apart * x.logp, 0.0)
        return x.row_mean(loss).sum() / max(totals.rows, 1), fetched(drafts)


def _said(member: Trajectory) -> str:
    """What the policy said in an episode, without its thoughts."""
    return "\n\n".join(turn.message.text for turn in member.turns if turn.message.text)


def _feedback(member: Trajectory) -> str:
    """What the environment said at the end, and what `info["feedback"]` says."""
    last = [message.text for message in member.turns[-1].observation]
    return "\n\n".join(text for text in (*last, str(member.info.get("feedback", ""))) if text.strip())


def _longer(values: NDArray[Any], prompt: int, added: int) -> NDArray[Any]:
    """[L] values, of which those of the first `prompt` tokens are all the same, for a prompt longer by `added`."""
    return np.concatenate([np.full(prompt + added, values[0], values.dtype), values[prompt:]])
