"""PPO: advantages and losses against TRL 1.12's, what a critic is shown and asked, and what is refused of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quintain.config import PPOConfig, parse_config
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.trainers.algorithms.ppo import PPO
from quintain.trainers.checkpoint import Progress, latest_checkpoint
from quintain.trainers.losses.inputs import LossInputs
from quintain.trainers.losses.metrics import metric_values
from quintain.trainers.model.forward import plain_model
from quintain.trainers.rows import Rows, Totals
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

from .algorithm_cases import Case
from .made_segments import tiny as of_kind
from .test_algorithms import Made
from .test_algorithms import made as made
from .test_learner import model as model
from .test_learner import weights
from .test_update import groups

torch.set_num_threads(1)
RECORDED = json.loads(Path(__file__).with_name("trl_ppo.json").read_text(encoding="utf-8"))


def turn(tokens: int, reward: float = 0.0, *, new: int = 2, fork: str | None = None) -> Turn:
    spans = (VersionSpan(0, 0, tokens),) if tokens else ()
    ids = list(range(3, 3 + tokens))
    return Turn([7] * new, ids, [-1.0] * tokens, Finish.STOP, spans, assistant("x"), reward=reward, fork=fork)


def played(
    *episodes: Sequence[Turn], ending: Ending = Ending.TERMINATED, rewards: dict[str, float] | None = None
) -> list[Group]:
    """A group of one for each episode."""
    made = []
    for n, turns in enumerate(episodes):
        total = sum(each.reward for each in turns)
        row = Trajectory(f"{n}", f"{n}", "k", n, 0, 0, tuple(turns), ending, total, rewards=rewards or {})
        made.append(Group(f"{n}", n, (row,)))
    return made


def credited(ppo: PPO, batch: list[Group], *columns: dict[str, Any]) -> Rows:
    """The batch with credit, where the passes found `columns` of its rows."""
    rows = ppo.rows(batch, version=0)
    return ppo.credit(rows.having(columns))


@pytest.mark.parametrize("recorded", RECORDED, ids=[json.dumps(each["options"]) for each in RECORDED])
def test_advantages_returns_losses_and_gradients_are_those_of_trl(recorded: dict[str, Any]) -> None:
    given, found = recorded["given"], {name: torch.tensor(value) for name, value in recorded["found"].items()}
    count, length = np.shape(given["old"])
    ppo = PPO(PPOConfig(**recorded["options"]), longest=length)
    columns = [
        {name: np.array(given[name][i]) for name in ("old", "ref", "value")} | {"next_value": np.zeros(length)}
        for i in range(count)
    ]
    rows = credited(ppo, played(*[[turn(length, score)] for score in given["score"]]), *columns)
    for name, theirs in (("advantage", "advantages"), ("return", "returns")):
        ours = np.stack([row.columns[name] for row in rows.rows])
        np.testing.assert_allclose(ours, found[theirs], rtol=2e-5, atol=2e-6)
    if ppo.config.needs_reference:
        assert rows.metrics["objective/kl"] == pytest.approx(float(found["kl"].sum(1).mean()))

    def flat(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).flatten()

    inputs = LossInputs(
        logp=flat(given["logp"]).requires_grad_(),
        row=torch.arange(count).repeat_interleave(length),
        rows=count,
        advantage=found["advantages"].flatten().double(),
        mask=torch.ones(count * length, dtype=torch.bool),
        old_logp=flat(given["old"]),
        value=flat(given["new_value"]).requires_grad_(),
        columns={"value": flat(given["value"]), "return": found["returns"].flatten().double()},
    )
    totals = Totals(rows=count, tokens=count * length, max_completion_length=length)
    assert inputs.value is not None
    for name, at, loss_name in (("policy", inputs.logp, "pg_loss"), ("critic", inputs.value, "vf_loss")):
        loss, metrics = ppo.loss(name, inputs, totals)
        (gradient,) = torch.autograd.grad(loss, at)
        assert float(loss.detach()) == pytest.approx(float(found[loss_name]), rel=1e-6)
        theirs = found["policy_gradient" if name == "policy" else "value_gradient"].flatten()
        torch.testing.assert_close(gradient.float(), theirs.float(), rtol=1e-5, atol=1e-7)
        if name == "critic":
            assert metric_values(metrics)["clip_ratio"] == pytest.approx(float(found["vf_clipfrac"]))
    trunk = PPO(PPOConfig(**recorded["options"], value_head=True, vf_coef=0.3), longest=length)
    loss, metrics = trunk.loss("policy", inputs, totals)
    assert float(loss.detach()) == pytest.approx(float(found["pg_loss"]) + 0.3 * float(found["vf_loss"]), rel=1e-6)
    of_policy, of_value = torch.autograd.grad(loss, [inputs.logp, inputs.value])
    torch.testing.assert_close(of_policy.float(), found["policy_gradient"].flatten(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(of_value.float(), 0.3 * found["value_gradient"].flatten(), rtol=1e-5, atol=1e-7)
    assert metric_values(metrics)["critic/clip_ratio"] == pytest.approx(float(found["vf_clipfrac"]))


def test_the_gradient_of_the_value_loss_is_its_finite_difference() -> None:
    ppo, generator = PPO(PPOConfig(), longest=4), torch.Generator().manual_seed(0)
    old, target, value = (torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(3))
    totals = Totals(rows=3, tokens=12, max_completion_length=4)

    def loss(value: torch.Tensor) -> torch.Tensor:
        return ppo.loss(
            "critic",
            LossInputs(
                logp=torch.zeros(12, dtype=torch.float64),
                row=torch.arange(3).repeat_interleave(4),
                rows=3,
                advantage=torch.zeros(12, dtype=torch.float64),
                mask=torch.ones(12, dtype=torch.bool),
                value=value,
                columns={"value": old, "return": target},
            ),
            totals,
        )[0]

    assert torch.autograd.gradcheck(loss, (value.requires_grad_(),))


def test_a_turns_reward_counts_from_its_last_token_on_and_gaps_are_no_steps() -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0, gamma=0.5, lam=1.0), longest=8)
    nothing = {"value": 0.0, "next_value": 0.0}
    (row,) = credited(ppo, played([turn(2, 4.0), turn(3, 8.0, new=5)]), nothing).rows
    np.testing.assert_allclose(row.columns["return"], [0.5 * 4 + 0.5**4 * 8, 4 + 0.5**3 * 8, 2, 4, 8])


def test_an_episode_that_forked_is_one_course_of_tokens() -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0, gamma=0.5, lam=0.0), longest=8)
    batch = played([turn(2, 4.0), turn(1, 8.0, new=5, fork="history")])
    first, second = credited(
        ppo, batch, {"value": [1.0, 2.0], "next_value": [2.0, 99.0]}, {"value": 6.0, "next_value": 99.0}
    ).rows
    np.testing.assert_allclose(first.columns["return"], [0.5 * 2, 4 + 0.5 * 6])
    np.testing.assert_allclose(second.columns["return"], [8])


@pytest.mark.parametrize(("ending", "ahead"), [(Ending.TERMINATED, 0.0), (Ending.TRUNCATED, 10.0)])
def test_an_episode_that_a_limit_ended_goes_on_in_the_critics_eyes(ending: Ending, ahead: float) -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0, gamma=0.5, lam=1.0), longest=8)
    columns = {"value": [1.0, 2.0, 3.0], "next_value": [2.0, 3.0, 10.0]}
    (row,) = credited(ppo, played([turn(3, 4.0)], ending=ending), columns).rows
    last = 4 + 0.5 * ahead
    np.testing.assert_allclose(row.columns["return"], [last / 4, last / 2, last])


def test_named_rewards_come_at_the_end_with_their_weights() -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0, reward_weights={"right": 2.0, "short": 1.0}), longest=8)
    batch = played([turn(1, 5.0), turn(1, 5.0)], rewards={"right": 3.0, "short": 0.5})
    rows = credited(ppo, batch, {"value": 0.0, "next_value": 0.0})
    np.testing.assert_allclose(rows.rows[0].columns["return"], [0.95 * 6.5, 6.5], rtol=1e-6)
    assert rows.metrics["rewards/right/mean"] == 3.0


def test_failures_are_in_no_advantage_and_a_batch_of_nothing_else_is_no_error() -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0), longest=8)
    lost = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "late")
    broken = Trajectory("f", "f", "k", 9, 0, 0, (turn(2),), Ending.FAILED, None, lost)
    alive = played([turn(2, 1.0)], [turn(2, 0.0)])
    columns = [{"value": 0.0, "next_value": 0.0}] * 2
    among = credited(ppo, [Group("f", 9, (broken,)), *alive], *columns)
    alone = credited(ppo, alive, *columns)
    for one, other in zip(among.rows, alone.rows, strict=True):
        np.testing.assert_array_equal(one.columns["advantage"], other.columns["advantage"])
    assert ppo.credit(ppo.rows([Group("f", 9, (broken,))], version=0)).metrics["frac_reward_excluded"] == 1.0


def test_values_that_are_not_finite_end_the_run_with_a_reason() -> None:
    ppo = PPO(PPOConfig(kl_coef=0.0), longest=8)
    with pytest.raises(QuintainError, match=r"critic: its values of 1 of 2 tokens are not finite.*critic_learn"):
        credited(ppo, played([turn(2, 1.0)]), {"value": [0.0, np.nan], "next_value": 0.0})


@pytest.mark.parametrize(("layout", "trunk"), [("tree", False), ("packed", False), ("padded", False), ("tree", True)])
def test_the_critic_is_asked_before_every_token_and_after_the_last(made: Made, layout: str, trunk: bool) -> None:
    learner = made(Case("ppo"), layout=layout, max_tokens_per_microbatch=60, value_head=trunk)
    critic: Any = learner.trained["policy" if trunk else "critic"].model.eval()
    head = critic.value_head if trunk else critic.score
    torch.nn.init.normal_(head.weight)
    rows = learner.algorithm.rows(groups(1), version=0)
    for row in learner.passes.fill(rows).rows:
        ids = torch.tensor(row.segment.ids).long()[None]
        with torch.no_grad():
            said = head(critic.model(ids).last_hidden_state)[0, :, 0]
        at = torch.tensor(row.segment.mask).nonzero()[:, 0]
        np.testing.assert_allclose(row.columns["value"], said[at - 1], rtol=1e-4, atol=1e-5)
        after = torch.cat([said[at[1:] - 1], said[-1:]])
        np.testing.assert_allclose(row.columns["next_value"], after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["whole", "lora"])
def test_a_head_on_the_policys_trunk_is_saved_beside_it_and_never_published(
    made: Made, lora: dict[str, Any] | None
) -> None:
    learner = made(Case("ppo", lora=lora), value_head=True)
    learner.update(groups(1), step=0)
    base: Any = plain_model(learner.model)
    assert base.value_head.weight.abs().sum() > 0
    assert dict(learner.weights()).keys() == dict(made(Case("grpo")).weights()).keys()
    learner.save(Progress(1, 1, 3, 2.0))
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    plain, told = type(base).from_pretrained(newest, output_loading_info=True)
    assert not any(told.values())
    assert not hasattr(plain, "value_head")
    again = made(Case("ppo", lora=lora), value_head=True)
    again.restore(newest)
    assert torch.equal(plain_model(again.model).value_head.weight, base.value_head.weight)


def test_in_the_critics_first_steps_the_policy_stays_as_it_is(made: Made) -> None:
    learner = made(Case("ppo"), critic_warmup_steps=1, num_iterations=1, weight_decay=0.1)
    before, critic = weights(learner), learner.trained["critic"].model
    value_before = [p.detach().clone() for p in critic.parameters()]
    figures = learner.update(groups(1), step=0)
    assert torch.equal(weights(learner), before)
    assert any(not torch.equal(p, q) for p, q in zip(critic.parameters(), value_before, strict=True))
    assert figures["rows_trained"] > 0
    assert not learner.trained["policy"].optimizer.state
    learner.update(groups(2), step=1)
    assert not torch.equal(weights(learner), before)


def test_a_critic_that_has_a_head_begins_with_what_it_says_and_one_of_the_policy_with_0(
    made: Made, model: Path, tmp_path: Path
) -> None:
    fresh = made(Case("ppo"))
    rows = fresh.passes.fill(fresh.algorithm.rows(groups(1), version=0)).rows
    assert not any(row.columns["value"].any() for row in rows)
    kept: Any = fresh.trained["critic"].model
    torch.nn.init.normal_(kept.score.weight)
    kept.save_pretrained(tmp_path / "critic")
    fresh.tokenizer.save_pretrained(tmp_path / "critic")
    given: Any = made(Case("ppo"), critic=str(tmp_path / "critic")).trained["critic"].model
    assert torch.equal(given.score.weight, kept.score.weight)


def test_a_critic_that_reads_other_tokens_is_refused(made: Made, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    of_kind("llama").save_pretrained(tmp_path / "critic")
    with pytest.raises(QuintainError, match=r"trainer\.critic: no tokenizer in"):
        made(Case("ppo"), critic=str(tmp_path / "critic"))
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1})))
    other.save_pretrained(tmp_path / "critic")
    with pytest.raises(QuintainError, match=r"trainer\.critic: .* reads other tokens \(2\) than .* \(1\)"):
        made(Case("ppo"), critic=str(tmp_path / "critic"))


def test_the_weight_of_the_kl_follows_its_target_and_is_in_the_checkpoint(made: Made) -> None:
    ppo = PPO(PPOConfig(kl_coef=0.1, kl_target=2.0, kl_horizon=100, prompts_per_step=10), longest=8)
    ppo.remember({"objective/kl": 2.2})
    assert ppo.state["kl_coef"] == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    ppo.remember({"objective/kl": 0.0})
    assert ppo.state["kl_coef"] == pytest.approx(0.1 * 1.01 * (1 - 0.2 * 10 / 100))
    case = Case("ppo", {"kl_target": 0.1, "kl_horizon": 10})
    learner = made(case)
    learner.update(groups(1), step=0)
    learner.update(groups(2), step=1)
    changed = dict(learner.algorithm.state)  # type: ignore[attr-defined]
    assert changed["kl_coef"] != 0.05
    learner.save(Progress(2, 2, 6, 2.0))
    again = made(case)
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    again.restore(newest)
    assert again.algorithm.state == changed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_target: the weight of the KL begins at kl_coef, which is 0"),
        ({"critic_warmup_steps": 100}, "leaves the policy no step of max_steps"),
        (
            {"value_head": True, "critic_warmup_steps": 1},
            "critic_warmup_steps are of a critic that is a model of its own",
        ),
        ({"critic_learning_rate": 0.1, "learning_rate": 0.0}, "follows the schedule of learning_rate, which is 0"),
        ({"epsilon": 0.1}, "epsilon is an option of"),
    ],
)
def test_options_that_cannot_be_meant_are_told(options: dict[str, Any], said: str) -> None:
    text = "model: {path: x}\nenvironment: {name: math}\ntrainer: {algorithm: ppo}\n"
    with pytest.raises(QuintainError, match=said):
        parse_config(text, [f"trainer.{name}={json.dumps(value)}" for name, value in options.items()])


def test_groups_of_one_cannot_be_replaced_for_being_alike() -> None:
    text = "model: {path: x}\nenvironment: {name: math}\ntrainer: {algorithm: ppo}\nrollout: {dynamic_sampling: true}\n"
    with pytest.raises(QuintainError, match="a group of one always is: drop it"):
        parse_config(text)
    assert parse_config(text, ["trainer.num_generations=2"]).rollout.dynamic_sampling
