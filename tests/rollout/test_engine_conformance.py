"""What every engine owes its callers: the invariants of `base.py`, asked of the embedded and of the fake one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.engines.base import Engine, Sampling, Weights
from quintain.rollout.engines.embedded.engine import EmbeddedEngine
from quintain.trajectory import Finish, check_spans

from ..fake_engine import FakeEngine
from ..tiny_llama import tiny_llama

WORDS, MAX_LENGTH = 97, 128
PROMPT = np.array([5, 17, 3, 96, 0, 41], dtype=np.int32)
LONG = Sampling(max_tokens=100, seed=1)


def llama(seed: int) -> LlamaForCausalLM:
    return tiny_llama(seed, words=WORDS, length=MAX_LENGTH, initializer_range=0.25)


def publish(folder: Path, seed: int) -> Path:
    """Weights that both engines can load."""
    folder.mkdir()
    state = llama(seed).state_dict()
    save_file(
        {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )
    return folder


def embedded(**options: Any) -> Engine:
    return EmbeddedEngine(llama(0), dtype="float32", max_batch=4, **options)


def fake(**options: Any) -> Engine:
    def say(prompt: Any, sampling: Sampling) -> list[int]:
        generator = np.random.default_rng(sampling.seed)
        if sampling.temperature == 0:
            return [engine.model.sample(int(prompt[-1]), 0, generator)] * sampling.max_tokens
        return list(generator.integers(0, WORDS, sampling.max_tokens))

    engine = FakeEngine(say, words=WORDS, max_length=MAX_LENGTH, capacity=4, **options)
    return engine


@pytest.fixture(params=[embedded, fake])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    made: Engine = request.param()
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - an engine tells its progress by its counters only
            await asyncio.sleep(0)


async def refused(awaitable: Any) -> tuple[FailureKind, Stage, str]:
    with pytest.raises(FailureError) as caught:
        await awaitable
    return caught.value.failure.kind, caught.value.failure.stage, caught.value.failure.message


async def test_a_sample_is_a_function_of_its_prompt_and_its_seed(engine: Engine) -> None:
    first, again, other = await asyncio.gather(
        *(engine.generate(PROMPT, Sampling(20, seed=seed), session=f"s{i}") for i, seed in enumerate([7, 7, 8]))
    )
    assert np.array_equal(first.output_ids, again.output_ids)
    assert not np.array_equal(first.output_ids, other.output_ids)


async def test_an_answer_without_a_stop_is_as_long_as_it_may_be(engine: Engine) -> None:
    done = await engine.generate(PROMPT, Sampling(20), session="s")
    assert (len(done.output_ids), done.finish) == (20, Finish.LENGTH)
    assert done.output_ids.dtype == np.int32
    assert done.logprobs.dtype == np.float32
    assert len(done.logprobs) == 20
    check_spans(done.versions, 20)


async def test_an_answer_stops_at_its_first_stop_id_and_keeps_it(engine: Engine) -> None:
    whole = await engine.generate(PROMPT, Sampling(40, seed=3), session="s")
    stop = int(whole.output_ids[10])
    first = int(np.argmax(whole.output_ids == stop))
    done = await engine.generate(PROMPT, Sampling(40, seed=3, stop_ids=(stop, 5000)), session="s")
    assert np.array_equal(done.output_ids, whole.output_ids[: first + 1])
    assert done.finish is Finish.STOP


async def test_an_answer_stops_with_the_token_after_which_it_says_a_stop_string(engine: Engine) -> None:
    whole = await engine.generate(PROMPT, Sampling(40, seed=3), session="s")
    wanted = whole.output_ids[10:13].tolist()

    def said(tokens: Sequence[int]) -> bool:
        return list(tokens)[-3:] == wanted

    done = await engine.generate(PROMPT, Sampling(40, seed=3, said=said), session="s")
    assert done.output_ids.tolist() == whole.output_ids[:13].tolist()
    assert np.array_equal(done.logprobs, whole.logprobs[:13])
    assert done.finish is Finish.STOP


async def test_a_stop_id_that_comes_with_the_last_allowed_token_is_a_stop(engine: Engine) -> None:
    whole = await engine.generate(PROMPT, Sampling(1, seed=3), session="s")
    done = await engine.generate(PROMPT, Sampling(1, seed=3, stop_ids=(int(whole.output_ids[0]),)), session="s")
    assert done.finish is Finish.STOP


async def test_prompt_and_answer_together_never_exceed_the_length(engine: Engine) -> None:
    prompt = np.arange(MAX_LENGTH - 3, dtype=np.int32) % WORDS
    done = await engine.generate(prompt, Sampling(50), session="s")
    assert (len(done.output_ids), done.finish) == (3, Finish.LENGTH)


async def test_a_prompt_that_leaves_no_room_is_too_long(engine: Engine) -> None:
    prompt = np.zeros(engine.max_length, dtype=np.int32)
    kind, stage, message = await refused(engine.generate(prompt, Sampling(1), session="s"))
    assert (kind, stage) == (FailureKind.TOO_LONG, Stage.GENERATE)
    assert str(MAX_LENGTH) in message


@pytest.mark.parametrize(
    ("prompt", "sampling", "named"),
    [
        ([], Sampling(1), "empty"),
        ([1, WORDS], Sampling(1), str(WORDS)),
        ([1, -1], Sampling(1), "-1"),
        ([1], Sampling(0), "max_tokens"),
        ([1], Sampling(1, temperature=-0.1), "temperature"),
        ([1], Sampling(1, temperature=float("nan")), "temperature"),
        ([1], Sampling(1, top_p=0.0), "top_p"),
        ([1], Sampling(1, top_p=1.1), "top_p"),
        ([1], Sampling(1, top_k=-1), "top_k"),
    ],
)
async def test_a_request_that_makes_no_sense_is_rejected_by_name(engine, prompt, sampling, named) -> None:
    kind, stage, message = await refused(engine.generate(np.array(prompt, dtype=np.int32), sampling, session="s"))
    assert (kind, stage) == (FailureKind.REJECTED, Stage.GENERATE)
    assert named in message


async def test_sampled_logprobs_are_those_that_scoring_gives(engine: Engine) -> None:
    done = await engine.generate(PROMPT, Sampling(30, seed=2), session="s")
    (scored,) = await engine.score([np.concatenate([PROMPT, done.output_ids])])
    np.testing.assert_allclose(done.logprobs, scored[len(PROMPT) - 1 :], atol=1e-5)


async def test_greedy_logprobs_are_of_temperature_one(engine: Engine) -> None:
    done = await engine.generate(PROMPT, Sampling(1, temperature=0), session="s")
    (scored,) = await engine.score([np.concatenate([PROMPT, done.output_ids])])
    np.testing.assert_allclose(done.logprobs, scored[-1:], atol=1e-5)


async def test_rows_are_scored_in_their_order_and_short_ones_have_nothing_to_score(engine: Engine) -> None:
    rows = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [], [4], [9, 8, 7, 6, 5], [1, 2])]
    scored = await engine.score(rows)
    assert [len(values) for values in scored] == [2, 0, 0, 4, 1]
    np.testing.assert_allclose(scored[4], scored[0][:1], atol=1e-5)
    assert await engine.score([]) == []


async def test_a_row_that_cannot_be_scored_is_refused(engine: Engine) -> None:
    kind, _, _ = await refused(engine.score([np.array([WORDS], dtype=np.int32)]))
    assert kind is FailureKind.REJECTED
    kind, _, _ = await refused(engine.score([np.zeros(MAX_LENGTH + 1, dtype=np.int32)]))
    assert kind is FailureKind.TOO_LONG


async def test_more_requests_than_fit_are_all_answered(engine: Engine) -> None:
    done = await asyncio.gather(*(engine.generate(PROMPT, Sampling(5, seed=s), session=f"{s}") for s in range(23)))
    assert {len(one.output_ids) for one in done} == {5}
    stats = engine.stats()
    assert (stats.output_tokens, stats.prompt_tokens) == (23 * 5, 23 * len(PROMPT))
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.busy_s > 0


async def test_nothing_is_sampled_between_pause_and_resume(engine: Engine) -> None:
    running = asyncio.ensure_future(engine.generate(PROMPT, LONG, session="s"))
    await until(lambda: engine.stats().output_tokens >= 3)
    await engine.pause()
    before = engine.stats().output_tokens
    late = asyncio.ensure_future(engine.generate(PROMPT, Sampling(2), session="late"))
    for _ in range(5):
        await engine.score([PROMPT])  # scoring works while paused: the canary needs it
    assert engine.stats().output_tokens == before < 100
    assert not running.done()
    await engine.resume()
    assert len((await running).output_ids) == 100
    assert len((await late).output_ids) == 2


async def test_a_pause_changes_no_sample(engine: Engine) -> None:
    undisturbed = await engine.generate(PROMPT, LONG, session="s")
    running = asyncio.ensure_future(engine.generate(PROMPT, LONG, session="s"))
    await until(lambda: engine.stats().output_tokens >= 105)
    await engine.pause()
    await engine.resume()
    disturbed = await running
    assert np.array_equal(disturbed.output_ids, undisturbed.output_ids)
    assert [span.version for span in disturbed.versions] == [0]


async def test_new_weights_and_their_version_come_together(engine: Engine, tmp_path: Path) -> None:
    before = await engine.score([PROMPT])
    assert engine.stats().version == 0
    await engine.load(Weights(publish(tmp_path / "w", seed=1), version=5))
    after = await engine.score([PROMPT])
    assert engine.stats().version == 5
    assert np.abs(after[0] - before[0]).max() > 1e-3
    done = await engine.generate(PROMPT, Sampling(4), session="s")
    assert [(span.version, span.start, span.end) for span in done.versions] == [(5, 0, 4)]


async def test_a_request_in_flight_carries_the_seam_between_two_versions(engine: Engine, tmp_path: Path) -> None:
    weights = Weights(publish(tmp_path / "w", seed=1), version=1)
    running = asyncio.ensure_future(engine.generate(PROMPT, LONG, session="s"))
    await until(lambda: engine.stats().output_tokens >= 3)
    await engine.pause()
    old = await engine.score([PROMPT])
    sampled = engine.stats().output_tokens
    await engine.load(weights)
    await engine.resume()
    done = await running
    assert [(span.version, span.start, span.end) for span in done.versions] == [(0, 0, sampled), (1, sampled, 100)]
    whole = np.concatenate([PROMPT, done.output_ids])
    (new,) = await engine.score([whole])
    np.testing.assert_allclose(done.logprobs[sampled:], new[len(PROMPT) - 1 + sampled :], atol=1e-5)
    assert np.abs(done.logprobs[:sampled] - new[len(PROMPT) - 1 : len(PROMPT) - 1 + sampled]).max() > 1e-3
    assert np.abs(old[0] - new[: len(PROMPT) - 1]).max() > 1e-3


async def test_weights_that_are_not_there_change_nothing(engine: Engine, tmp_path: Path) -> None:
    before = await engine.score([PROMPT])
    kind, stage, message = await refused(engine.load(Weights(tmp_path / "nowhere", version=9)))
    assert (kind, stage) == (FailureKind.REJECTED, Stage.PUBLISH)
    assert "nowhere" in message
    assert engine.stats().version == 0
    assert np.array_equal((await engine.score([PROMPT]))[0], before[0])


async def test_a_cancelled_request_frees_its_slot(engine: Engine) -> None:
    running = [asyncio.ensure_future(engine.generate(PROMPT, LONG, session=f"{i}")) for i in range(6)]
    await until(lambda: engine.stats().output_tokens >= 8)
    for task in running:
        task.cancel()
    done = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in done)
    await until(lambda: engine.stats().running + engine.stats().waiting == 0)
    assert len((await engine.generate(PROMPT, Sampling(3), session="s")).output_ids) == 3


async def test_cancelling_one_leaves_the_others_as_they_were(engine: Engine) -> None:
    settings = [replace(LONG, seed=seed) for seed in range(4)]
    alone = [await engine.generate(PROMPT, one, session="s") for one in settings]
    tasks = [asyncio.ensure_future(engine.generate(PROMPT, one, session=f"{one.seed}")) for one in settings]
    await until(lambda: engine.stats().output_tokens >= 400 + 20)
    tasks[1].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for index in (0, 2, 3):
        assert np.array_equal(done[index].output_ids, alone[index].output_ids)


async def test_closing_ends_what_is_in_flight_with_a_cancelled_failure(engine: Engine) -> None:
    tasks = [asyncio.ensure_future(engine.generate(PROMPT, LONG, session=f"{i}")) for i in range(9)]
    await until(lambda: engine.stats().output_tokens >= 4)
    await engine.close()
    for task in tasks:
        assert (await refused(task))[0] is FailureKind.CANCELLED
    for call in (engine.generate(PROMPT, Sampling(1), session="s"), engine.score([PROMPT]), engine.pause()):
        assert (await refused(call))[0] is FailureKind.CANCELLED
    await engine.close()


async def test_the_loop_goes_on_while_the_engine_computes(engine: Engine) -> None:
    running = asyncio.ensure_future(engine.generate(PROMPT, LONG, session="s"))
    turns = 0
    while not running.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 50
    assert len(running.result().output_ids) == 100
