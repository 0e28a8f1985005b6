"""Several seats in one episode, all played by the policy: each its own tokens, its own rewards, its own credit."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from quintain.calling.chat import ChatEndpoint
from quintain.config import GRPOConfig
from quintain.envs import LocalClient, Observation, Step, user
from quintain.envs.gym import GymEnv
from quintain.failure import FailureError, QuintainError, Stage
from quintain.launch.guards import first_step_problem
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.endpoint import run_chat_episode
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode
from quintain.rollout.rules.groups import outcome_of, teaches
from quintain.trainers.algorithms.grpo import GRPO
from quintain.trainers.rows import credited, episode_rows
from quintain.trajectory import Ending, Group, Trajectory, extends, to_segments

from ..fake_engine import FakeEngine
from ..launch.fake_openai import fake_openai
from ..rollout.stage import CHAT
from .conftest import Serve
from .samples import Bidding


def spec(member: int = 0, **changes: Any) -> EpisodeSpec:
    fields = {
        "id": f"e{member}", "group": "g", "task": Bidding.tasks("train")[0], "index": 0, "member": member,
        "seed": 11 + member, "sampling": Sampling(64), "max_turns": 16, "max_length": 512,
    }  # fmt: skip
    return EpisodeSpec(**{**fields, **changes})  # type: ignore[arg-type]


async def episode(member: int = 0, **changes: Any) -> Trajectory:
    async with LocalClient(Bidding) as client:
        return await run_episode(
            spec(member, **changes), make_env=client.episode, engine=FakeEngine(words=128), chat=CHAT
        )


async def test_each_seat_s_turns_are_a_chain_of_its_own_exact_tokens_and_nothing_of_the_other_s() -> None:
    made = await episode()
    assert [turn.agent for turn in made.turns] == ["ann", "bob"] * 3
    segments = dict(zip(("ann", "bob"), to_segments(made), strict=True))
    for agent, segment in segments.items():
        own = [turn for turn in made.turns if turn.agent == agent]
        assert own[0].prompt_ids.tolist() == CHAT.first([user(f"you are {agent}")]).tolist()
        for before, after in pairwise(own):
            assert extends(after.prompt_ids, before.ids)
            told = CHAT.text(after.prompt_ids[len(before.ids) :])
            assert re.search(r"round \d", told)
        assert segment.ids.tolist() == own[-1].ids.tolist()
        assert segment.ids[segment.mask].tolist() == [i for turn in own for i in turn.output_ids.tolist()]
        assert segment.logprobs[segment.mask].tolist() == [p for turn in own for p in turn.logprobs.tolist()]
    assert sum(int(segment.mask.sum()) for segment in segments.values()) == made.output_tokens


async def test_each_seat_is_paid_at_its_own_last_token() -> None:
    made = await episode()
    assert (made.ending, made.reward) == (Ending.TERMINATED, 1.0)
    said = {agent: sum(len(t.message.text) for t in made.turns if t.agent == agent) for agent in ("ann", "bob")}
    assert made.rewards == {"ann": float(said["bob"] <= said["ann"]), "bob": float(said["bob"] > said["ann"])}
    for agent, segment in zip(("ann", "bob"), to_segments(made), strict=True):
        assert segment.rewards[-1] == made.rewards[agent] == segment.rewards.sum()


async def test_a_seat_is_compared_with_the_same_seat_of_the_others_in_its_group() -> None:
    rows = tuple([await episode(member) for member in range(6)])
    lost = tuple([await episode(6, max_length=3)])
    assert {row.rewards["ann"] for row in rows} == {0.0, 1.0}  # the sums alone are all alike, and say nothing
    assert {row.reward for row in rows} == {1.0}
    assert lost[0].failure is not None
    group = Group("g", 0, (*rows, *lost))
    assert teaches({row.member: outcome_of(row) for row in rows}) is None
    assert first_step_problem([group]) is None
    made = episode_rows([group], GRPOConfig(), version=0, longest=64)
    assert made.episodes.failed.tolist() == [False] * 12 + [True]
    credit = GRPO(GRPOConfig(), longest=64).credit(made)
    for place, (_, played) in enumerate(credited([group])[:12]):
        agent = played.turns[0].agent
        assert {turn.agent for turn in played.turns} == {agent}
        paid = np.array([row.rewards[agent] for row in rows])
        expected = (played.reward - paid.mean()) / (paid.std(ddof=1) + 1e-4)
        (row,) = (row for row in credit.rows if row.trajectory == place)
        np.testing.assert_allclose(row.columns["advantage"], expected, rtol=1e-5)


async def test_over_http_an_episode_of_several_seats_is_the_same(serve: Serve) -> None:
    local = await episode()
    async with serve("Bidding").client() as client:
        remote = await run_episode(spec(), make_env=client.episode, engine=FakeEngine(words=128), chat=CHAT)
    assert [turn.agent for turn in remote.turns] == [turn.agent for turn in local.turns]
    assert [turn.ids.tolist() for turn in remote.turns] == [turn.ids.tolist() for turn in local.turns]
    assert remote.rewards == local.rewards


async def test_behind_an_endpoint_each_seat_has_a_conversation_of_its_own() -> None:
    heard: list[list[str]] = []

    def says(request: dict[str, Any]) -> dict[str, Any]:
        heard.append([message["content"] for message in request["messages"]])
        return {"content": f"bid {len(heard)}"}

    with fake_openai(says) as fake:
        endpoint = ChatEndpoint(
            fake.url, {"model": "m"}, who="it", stage=Stage.GENERATE, token=None, timeout_s=30, retries=0,
            max_reply_bytes=1 << 20,
        )  # fmt: skip
        async with LocalClient(Bidding) as client:
            made = await run_chat_episode(spec(), make_env=client.episode, endpoint=endpoint)
        await endpoint.close()
    assert heard[4] == ["you are ann", "bid 1", "round 1", "bid 3", "round 2"]
    assert heard[5] == ["you are bob", "bid 2", "round 1", "bid 4", "round 2"]
    assert made.rewards == {"ann": 1.0, "bob": 0.0}


async def test_weights_of_named_rewards_are_refused_where_each_seat_has_its_own() -> None:
    made = await episode(reward_weights={"ann": 1.0})
    assert made.failure is not None
    assert "reward_weights" in made.failure.message
    with pytest.raises(QuintainError, match="the environment gives no reward 'ann' \\(it gives none\\)"):
        episode_rows(
            [Group("g", 0, (await episode(),))], GRPOConfig(reward_weights={"ann": 1.0}), version=0, longest=64
        )


@pytest.mark.parametrize("paid", [float("nan"), "much"])
def test_a_seat_is_paid_a_finite_number(paid: Any) -> None:
    with pytest.raises(FailureError, match="the reward of 'bob' must be a finite number"):
        Step(Observation(), 0.0, False, others={"bob": paid})


def test_a_gymnasium_env_says_that_it_has_one_player() -> None:
    env = GymEnv(Bidding)
    with pytest.raises(QuintainError, match="has one player, and it is the turn of 'ann' of several"):
        env.reset(seed=0)
    env.close()
