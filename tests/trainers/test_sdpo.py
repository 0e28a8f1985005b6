"""SDPO: who is told what, a teacher's prompt in tokens, and a loss that is TRL's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.experimental.sdpo import SDPOConfig as TRLConfig
from trl.experimental.sdpo.loss_utils import (
    apply_importance_sampling_clipping,
    compute_sampled_token_self_distillation_loss,
)

from quintain.config import SDPOConfig
from quintain.messages import assistant, system, user
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.trainers.algorithms import sdpo
from quintain.trainers.algorithms.sdpo import SDPO
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.rows import Rows, Totals
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from .algorithm_cases import CASES
from .test_algorithms import Made
from .test_algorithms import made as made
from .test_learner import model as model
from .test_learner import weights

torch.set_num_threads(1)
MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
PROMPT = (system("Be brief."), user("What is 2 + 2?"))


@cache
def chat() -> TemplateChat:
    return TemplateChat(load_tokenizer(str(MODEL)))


def episode(member: int, answer: str, reward: float, *, says: str = "", before: Sequence[int] = ()) -> Trajectory:
    """One turn; `says` is what the environment answers, `before` are tokens in front of the prompt (tools, say)."""
    ids, said = [*before, *chat().first(PROMPT)], chat().first((user(answer),))[-6:]
    turn = Turn(
        ids, said, [-1.0] * len(said), Finish.STOP, (VersionSpan(0, 0, len(said)),), assistant(answer),
        observation=(user(says),) if says else (), reward=reward,
    )  # fmt: skip
    return Trajectory(f"{member}", "g", "k", 0, member, 0, (turn,), Ending.TERMINATED, reward, prompt=PROMPT)


def rows(*members: Trajectory, **options: Any) -> Rows:
    return SDPO(SDPOConfig(**options), longest=8, chat=chat).rows([Group("g", 0, members)], version=0)


def heard(found: Rows, at: int) -> str:
    """What the teacher of a row is told, in the words of the last message."""
    row = found.rows[at]
    assert row.teacher is not None
    length = int(row.teacher.mask.argmax())
    text = chat().text(row.teacher.ids[:length])
    begin, end = chat().text(chat().first(PROMPT)).split("What is 2 + 2?")
    assert text.startswith(begin)
    assert text.endswith(end)
    assert row.teacher.ids[length:].tolist() == row.segment.ids[row.segment.mask].tolist()
    assert row.teacher.mask[length:].all()
    assert row.teacher.logprobs[length:].tolist() == row.segment.logprobs[row.segment.mask].tolist()
    return text.removeprefix(begin).removesuffix(end)


def test_a_teacher_is_told_of_anothers_success_and_of_its_own_feedback_in_the_papers_words() -> None:
    found = rows(episode(0, "five", 0.0, says="five is too much"), episode(1, "four", 1.0, says="well done"))
    solution = sdpo.SOLUTION.format("four")
    feedback = sdpo.FEEDBACK.format("five is too much")
    assert heard(found, 0) == sdpo.TOLD.format("What is 2 + 2?", solution, feedback)
    assert found.rows[1].teacher is None  # nobody else succeeded
    assert found.metrics["self_distillation/reprompt_fraction"] == 0.5


def test_the_words_are_those_of_trl() -> None:
    theirs = {name: field.default for name, field in TRLConfig.__dataclass_fields__.items()}
    prompt, solution, feedback = "p", theirs["solution_template"], theirs["feedback_template"]
    assert sdpo.SOLUTION.format("s") == solution.format(successful_previous_attempt="s")
    assert sdpo.FEEDBACK.format("f") == feedback.format(feedback_raw="f")
    assert sdpo.TOLD.format(prompt, "s", "f") == theirs["reprompt_template"].format(
        prompt=prompt, solution="s", feedback="f"
    )
    options = ("success_reward_threshold", "distillation_is_clip", "max_reprompt_len")
    for name in (*options, "teacher_model_kind", "teacher_update_rate", "teacher_sync_steps"):
        assert SDPOConfig.model_fields[name].default == theirs[name]


@pytest.mark.parametrize(
    ("rewards", "says", "options", "taught"),
    [
        ([0.0, 0.0], "", {}, [False, False]),  # nobody succeeded, and nothing was said
        ([0.0, 0.0], "no", {}, [True, True]),
        ([0.0, 0.0], "no", {"include_environment_feedback": False}, [False, False]),
        ([1.0, 1.0], "yes", {}, [True, True]),  # each is shown the other
        ([0.0, 0.5], "", {"success_reward_threshold": 0.5}, [True, False]),
        ([0.0, 1.0], "", {"max_reprompt_len": 30}, [False, False]),
    ],
)
def test_an_episode_is_taught_where_there_is_something_to_tell(
    rewards: list[float], says: str, options: dict[str, Any], taught: list[bool]
) -> None:
    found = rows(*(episode(n, f"a{n}", reward, says=says) for n, reward in enumerate(rewards)), **options)
    assert [row.teacher is not None for row in found.rows] == taught


def test_what_stands_before_the_message_stays_in_the_teachers_prompt_and_a_prompt_that_asks_nothing_is_left() -> None:
    found = rows(episode(0, "five", 0.0, before=[7, 8, 9]), episode(1, "four", 1.0))
    assert found.rows[0].teacher is not None
    assert found.rows[0].teacher.ids[:3].tolist() == [7, 8, 9]
    other = replace(episode(0, "five", 0.0), prompt=(user("something else"), assistant("that ends otherwise")))
    assert rows(other, episode(1, "four", 1.0)).rows[0].teacher is None


def test_each_seat_of_an_episode_is_told_what_became_of_its_own_part() -> None:
    """One seat succeeds where another fails: each hears of the same seat in the group's other episodes alone."""

    def both(member: int, mine: float, theirs: float) -> Trajectory:
        (one,), (other,) = (episode(member, f"{name}{member}", 0.0).turns for name in ("first", "second"))
        turns = (replace(one, reward=mine), replace(other, reward=theirs, agent="second"))
        return replace(episode(member, "x", 0.0), turns=turns, reward=mine + theirs)

    found = rows(both(0, 1.0, 0.0), both(1, 0.0, 1.0))
    assert [row.teacher is not None for row in found.rows] == [False, True, True, False]
    for at, name in ((1, "second1"), (2, "first0")):
        assert heard(found, at) == sdpo.TOLD.format("What is 2 + 2?", sdpo.SOLUTION.format(name), "")


def test_value_and_gradient_are_those_of_trl_for_any_cut() -> None:
    """Its sampled-token loss and its clipped ratio, from logits; the mean over rows of token means."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        logits, teacher, old = (torch.randn(3, 4, 5, generator=g, dtype=torch.float64) for _ in range(3))
        ids = torch.randint(0, 5, (3, 4), generator=g)
        mask = torch.arange(4)[None] < torch.tensor([4, 1, 3])[:, None]
        logp, theirs, before = (
            x.log_softmax(-1).gather(-1, ids[..., None])[..., 0] for x in (logits.requires_grad_(), teacher, old)
        )
        per_token = compute_sampled_token_self_distillation_loss(logits, teacher, ids, distillation_alpha=1.0)
        per_token = apply_importance_sampling_clipping(per_token, logp, before, 1.5)
        expected = ((per_token * mask).sum(-1) / mask.sum(-1)).mean()
        algorithm = SDPO(SDPOConfig(distillation_is_clip=1.5), longest=4, chat=chat)
        losses = []
        for part in ([0], [1, 2]):
            at = [(r, t) for r in part for t in range(4) if mask[r, t]]
            r, t = (torch.tensor(x) for x in zip(*at, strict=True))
            inputs = LossInputs(
                logp=logp[r, t], row=torch.from_numpy(np.searchsorted(part, r.numpy())), rows=len(part),
                advantage=torch.zeros(len(at)), mask=torch.ones(len(at), dtype=torch.bool), old_logp=before[r, t],
                columns={"teacher": theirs[r, t]},
            )  # fmt: skip
            losses.append(algorithm.loss("policy", inputs, Totals(rows=3, tokens=8, max_completion_length=4))[0])
        loss = torch.stack(losses).sum()
        torch.testing.assert_close(loss, expected)
        (a,), (b,) = (torch.autograd.grad(x, logits, retain_graph=True) for x in (loss, expected))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kind", "rate"), [("live", 1.0), ("base", 0.0)])
def test_a_teacher_that_follows_whole_is_the_policy_and_one_that_never_does_is_that_before_training(
    made: Made, kind: str, rate: float
) -> None:
    """And one that follows by a part is neither."""
    case = CASES["sdpo"]
    learners = [
        made(case, teacher_model_kind=kind),
        made(case, teacher_update_rate=rate),
        made(case, teacher_update_rate=0.5),
    ]
    for step in range(2):
        for learner in learners:
            learner.update(case.data(step), step=step)
    same, follows, other = map(weights, learners)
    assert torch.equal(same, follows)
    assert not torch.equal(same, other)
