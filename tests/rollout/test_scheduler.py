"""The scheduler over the fake engine: exactly once, on policy, failures as data, refused publishes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from quintain.codec import pack
from quintain.envs import LocalClient
from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode
from quintain.rollout.scheduler import Scheduler, task_of
from quintain.trajectory import Ending, Finish, Group, Trajectory, extends, to_segments

from ..fake_engine import FakeEngine, crash_on, hang_on
from .stage import CHAT, Words, batch_of, canary, scheduler, weights
from .test_journal import pending


async def publish(made: Scheduler, folder: Path, version: int, *, admit: bool = True) -> None:
    published = weights(folder, version)
    await made.publish(published, canary(published), admit=admit)


async def batch(made: Scheduler, step: int) -> list[Group]:
    groups = await batch_of(made, step, wait_s=30)
    assert groups is not None
    return groups


def spec(**changes: object) -> EpisodeSpec:
    fields = {
        "id": "e", "group": "g", "task": Words.tasks("train")[3], "index": 3, "member": 0, "seed": 11,
        "sampling": Sampling(8), "max_turns": 8, "max_length": 512, "attempts": 2,
    }  # fmt: skip
    return EpisodeSpec(**{**fields, **changes})  # type: ignore[arg-type]


async def episode(
    engine: FakeEngine | None = None, options: dict[str, object] | None = None, **changes: object
) -> Trajectory:
    async with LocalClient(Words, options or {}) as client:
        return await run_episode(
            spec(**changes), make_env=client.episode, engine=engine or FakeEngine(words=128), chat=CHAT
        )


async def test_an_episode_is_a_chain_of_exact_tokens() -> None:
    made = await episode(options={"turns": 3}, environment="words")
    assert (made.environment, made.task_id) == ("words", "train-3")
    assert (made.ending, made.reward, made.rewards) == (Ending.TERMINATED, 0.75, {"part": 0.75})
    assert len(made.turns) == 3
    for before, after in zip(made.turns, made.turns[1:], strict=False):
        assert extends(after.prompt_ids, before.ids)
    (segment,) = to_segments(made)
    assert segment.mask.sum() == made.output_tokens
    assert made.turns[0].observation[0].content == "2 left"


async def test_the_same_seed_gives_the_same_episode_and_turns_differ() -> None:
    a, b, c = [await episode(options={"turns": 2}, seed=seed) for seed in (1, 1, 2)]
    outputs = [[turn.output_ids.tolist() for turn in made.turns] for made in (a, b, c)]
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]
    assert outputs[0][0] != outputs[0][1]


@pytest.mark.parametrize(
    ("trouble", "stage", "turns"), [("reset", Stage.RESET, 0), ("step", Stage.STEP, 1), ("late", Stage.STEP, 2)]
)
async def test_an_environment_that_raises_makes_a_failure_that_keeps_the_turns_it_had(
    trouble: str, stage: Stage, turns: int
) -> None:
    made = await episode(options={"turns": 2, "trouble": trouble})
    assert made.reward is None
    assert made.failure is not None
    assert (made.failure.kind, made.failure.stage) == (FailureKind.CRASHED, stage)
    assert "no " in made.failure.message
    assert (len(made.turns), made.attempts) == (turns, 2)


async def test_a_retryable_failure_is_tried_again_with_the_same_seeds() -> None:
    healthy = await episode(options={"turns": 2})
    retried = await episode(FakeEngine(words=128, fail=crash_on(2)), options={"turns": 2})
    assert (retried.attempts, retried.failure) == (2, None)
    assert [t.output_ids.tolist() for t in retried.turns] == [t.output_ids.tolist() for t in healthy.turns]


async def test_a_prompt_longer_than_the_limit_is_a_failure_that_is_not_tried_again() -> None:
    made = await episode(max_length=4)
    assert made.failure is not None
    assert (made.failure.kind, made.failure.retryable, made.attempts) == (FailureKind.TOO_LONG, False, 1)
    assert "an episode at most 4" in made.failure.message


async def test_limits_of_turns_and_tokens_truncate_and_keep_the_reward() -> None:
    by_turns = await episode(options={"turns": 5}, max_turns=2)
    assert (by_turns.ending, by_turns.reward, by_turns.truncated) == (Ending.TRUNCATED, 0.5, True)
    by_tokens = await episode(options={"turns": 50}, max_length=60, max_turns=99)
    assert by_tokens.ending is Ending.TRUNCATED
    assert max(len(turn.ids) for turn in by_tokens.turns) <= 60


async def test_an_empty_answer_is_a_turn() -> None:
    made = await episode(FakeEngine(lambda prompt, sampling: [], words=128))
    (turn,) = made.turns
    assert (turn.message.content, turn.output_ids.tolist(), turn.finish) == ("", [0], Finish.STOP)


async def test_nothing_is_sampled_before_the_first_publish(tmp_path: Path) -> None:
    engine = FakeEngine(words=128)
    made = scheduler(tmp_path, engine=engine)
    with pytest.raises(FailureError, match="publish first"):
        await made.batch(0, wait_s=0)
    await publish(made, tmp_path, 0, admit=False)
    assert engine.calls == 0
    made.admit(0)
    assert len(await batch(made, 0)) == 2
    await made.close()


async def test_at_staleness_0_every_token_is_of_the_version_that_consumes_it(tmp_path: Path) -> None:
    made = scheduler(tmp_path)
    for step in range(4):
        await publish(made, tmp_path, step)
        groups = await batch(made, step)
        assert [g.index for g in groups] == [2 * step, 2 * step + 1]
        spans = {s.version for g in groups for t in g.trajectories for turn in t.turns for s in turn.versions}
        assert spans == {step}
    await made.close()


@pytest.mark.parametrize("max_staleness", [1, 2])
async def test_trajectories_are_never_older_than_allowed_and_none_is_thrown_away(
    tmp_path: Path, max_staleness: int
) -> None:
    made = scheduler(tmp_path, max_staleness=max_staleness)
    ages = set()
    for step in range(5):
        await publish(made, tmp_path, step)
        for group in await batch(made, step):
            ages |= {step - s.version for t in group.trajectories for turn in t.turns for s in turn.versions}
    assert max(ages) <= max_staleness
    assert max(ages) >= 1
    balance = made.journal.balance()
    assert balance.consumed == 10
    assert balance.issued == 2 * (5 + max_staleness)
    await made.close()


async def test_what_was_in_flight_at_a_crash_is_run_again_and_equals_a_run_without_one(tmp_path: Path) -> None:
    for name in ("calm", "crash"):
        (tmp_path / name).mkdir()
    calm = scheduler(tmp_path / "calm")
    await publish(calm, tmp_path, 0)
    expected = await batch(calm, 0)
    await calm.close()

    never = asyncio.Event()
    broken = scheduler(tmp_path / "crash", engine=FakeEngine(words=128, fail=hang_on(3, never)))
    await publish(broken, tmp_path, 0)
    assert await broken.batch(0, wait_s=0.2) is None
    await broken.close()  # what a crash leaves is what is in the file

    again = scheduler(tmp_path / "crash")
    assert 1 <= len(pending(again.journal)) < 6
    await publish(again, tmp_path, 0)
    found = await batch(again, 0)
    assert [outputs(g) for g in found] == [outputs(g) for g in expected]
    assert again.journal.balance().issued == 2
    await again.close()


def outputs(group: Group) -> list[list[int]]:
    return [turn.output_ids.tolist() for t in group.trajectories for turn in t.turns]


async def test_a_step_asked_for_again_gives_the_same_groups(tmp_path: Path) -> None:
    made = scheduler(tmp_path)
    await publish(made, tmp_path, 0)
    first = await batch(made, 0)
    assert list(map(pack, await batch(made, 0))) == list(map(pack, first))
    await made.close()


async def test_a_canary_refuses_stale_weights_and_sampling_waits_for_good_ones(tmp_path: Path) -> None:
    engine = FakeEngine(words=128, stale=True)
    made = scheduler(tmp_path, engine=engine)
    with pytest.raises(FailureError, match="does not sample with the weights of version 0") as caught:
        await publish(made, tmp_path, 0)
    assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.INVALID, Stage.PUBLISH)
    assert (made.version, engine.calls) == (-1, 0)
    engine._stale = False
    await publish(made, tmp_path, 0)
    assert len(await batch(made, 0)) == 2
    await made.close()


async def test_a_nan_from_the_engine_is_refused(tmp_path: Path) -> None:
    published = weights(tmp_path, 0)
    made = scheduler(tmp_path)
    good = canary(published)
    bad = type(good)(good.rows, tuple(np.full_like(row, np.nan) for row in good.logprobs), 1.0)
    with pytest.raises(FailureError, match="differ from the trainer's by inf"):
        await made.publish(published, bad, admit=True)
    await made.close()


async def test_weights_that_cannot_be_loaded_leave_the_old_ones_sampling(tmp_path: Path) -> None:
    made = scheduler(tmp_path)
    await publish(made, tmp_path, 0)
    missing = type(weights(tmp_path, 1))(tmp_path / "none", 1)
    with pytest.raises(FailureError):
        await made.publish(missing, canary(weights(tmp_path, 1)), admit=True)
    assert len(await batch(made, 0)) == 2
    assert made.engine.stats().version == 0
    await made.close()


async def test_failures_are_counted_by_kind_and_stage(tmp_path: Path) -> None:
    made = scheduler(tmp_path, options={"trouble": "step"})
    await publish(made, tmp_path, 0)
    groups = await batch(made, 0)
    assert all(t.reward is None for g in groups for t in g.trajectories)
    assert made.failures == {"crashed/step": 6}
    await made.close()


async def test_an_evaluation_touches_no_journal(tmp_path: Path) -> None:
    made = scheduler(tmp_path)
    await publish(made, tmp_path, 0, admit=False)
    seen: list[int] = []
    groups = [
        await made.run_task(
            f"g{i}", task_of("heldout", i), i, (1, 2), sampling=Sampling(8, temperature=0.0), progress=seen.append
        )
        for i in range(4)
    ]
    assert [(g.id, g.index) for g in groups] == [("g0", 0), ("g1", 1), ("g2", 2), ("g3", 3)]
    assert [t.task for g in groups for t in g.trajectories] == [f"heldout/{i}" for i in range(4) for _ in range(2)]
    assert [(t.member, t.seed) for g in groups for t in g.trajectories] == [(0, 1), (1, 2)] * 4
    assert seen == [1, 2] * 4
    assert made.journal.balance().issued == 0
    await made.close()
