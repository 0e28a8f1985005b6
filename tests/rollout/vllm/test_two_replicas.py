"""Two replicas of a real vLLM as one engine: exact through updates, and nothing lost when one dies or hangs."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from quintain.failure import FailureError
from quintain.rollout.engines.base import Sampling, Weights
from quintain.rollout.engines.vllm.engine import VLLMEngine
from quintain.rollout.engines.vllm.start import open_vllm
from quintain.trajectory import Finish, check_spans

from . import real
from .real import PROMPT, experiment, living, processes, serving, until

pytestmark = [
    pytest.mark.needs_vllm,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
]

LONG = Sampling(400)
ALL_WORDS = 49_152  # so that what is done while long requests are sampled is done before they end
llama, model_folder, publish, logprobs, explained = (
    partial(made, words=ALL_WORDS)
    for made in (real.llama, real.model_folder, real.publish, real.logprobs, real.explained)
)


@pytest.fixture(scope="module")
def said() -> real.Said:
    return real.Said()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory, said: real.Said) -> AsyncIterator[VLLMEngine]:
    folder = tmp_path_factory.mktemp("two")
    config = experiment(model_folder(folder / "model"), {"replicas": 2, "hang_s": 20.0})
    async with serving(config, folder / "logs", said) as made:
        yield made


async def put_in_force(engine: VLLMEngine, weights: Weights) -> None:
    await engine.pause()
    await engine.load(weights)
    await engine.resume()


def sampled_on(engine: VLLMEngine) -> list[int]:
    """How many requests each replica has."""
    return [len(member.attempts) for member in engine._fleet.members]


async def begin(engine: VLLMEngine, tokens: int, sessions: str) -> tuple[list[asyncio.Task], list[int]]:
    """Four long requests of new sessions, two on each replica, each with some of its tokens; how many each has."""
    counts = [0] * 4

    def counting(i: int) -> Sampling:
        def said(ids: Sequence[int]) -> bool:
            counts[i] = len(ids)
            return False

        return replace(LONG, said=said)

    tasks = [asyncio.ensure_future(engine.generate(PROMPT, counting(i), session=f"{sessions}{i}")) for i in range(4)]
    await until("tokens", lambda: min(counts) >= tokens)
    assert sampled_on(engine) == [2, 2]
    return tasks, counts


async def test_progress_was_told_and_the_log_is_kept(engine: VLLMEngine, said: real.Said) -> None:
    assert said.has("vllm-0 is up")
    assert said.has("vllm-1 is up")
    for process in processes(engine):
        assert "processed_logprobs" in process.launch.log.read_text()


async def test_after_each_of_five_updates_the_logprobs_of_both_replicas_are_those_of_transformers(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    for version in range(1, 6):
        await put_in_force(engine, publish(tmp_path / str(version % 2), version))
        done = await asyncio.gather(*(engine.generate(PROMPT, Sampling(12), session=f"{i}") for i in range(4)))
        for one in done:
            assert explained(one, version).max() <= 1e-4
            assert [(span.version, span.start, span.end) for span in one.versions] == [(version, 0, 12)]
        (scored,) = await engine.score([PROMPT])
        np.testing.assert_allclose(scored, logprobs(version, PROMPT), atol=1e-4)
    assert engine.stats().version == 5


async def test_at_other_temperatures_the_logprobs_are_of_the_distribution_sampled_from(engine: VLLMEngine) -> None:
    for sampling, scale in ((Sampling(8, temperature=0.7), 0.7), (Sampling(8, temperature=0.0), 1.0)):
        done = await engine.generate(PROMPT, sampling, session="t")
        import torch

        with torch.no_grad():
            whole = torch.tensor(np.concatenate([PROMPT, done.output_ids]), dtype=torch.long)[None]
            logits = llama(engine.stats().version)(whole).logits[0, len(PROMPT) - 1 : -1] / scale
        told = torch.log_softmax(logits, -1).gather(1, whole[0, len(PROMPT) :, None])[:, 0]
        np.testing.assert_allclose(done.logprobs, told.numpy(), atol=1e-4)


async def test_with_kv_keep_the_seam_is_as_exact_and_the_old_keys_and_values_stay(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    config = experiment(model_folder(tmp_path / "model"), {**real.reached(processes(engine)[0]), "kv": "keep"})
    other = await asyncio.to_thread(open_vllm, config, logs=tmp_path, report=real.Said())
    try:
        await other.load(publish(tmp_path / "1", 1))
        second = publish(tmp_path / "2", 2)
        running = asyncio.ensure_future(other.generate(PROMPT, LONG, session="s"))
        await until("tokens", lambda: other.stats().output_tokens >= 20)
        await other.pause()
        await other.load(second)
        (scored,) = await other.score([PROMPT])
        np.testing.assert_allclose(scored, logprobs(2, PROMPT), atol=1e-4)
        await other.resume()
        done = await running
    finally:
        await other.close()
    assert [span.version for span in done.versions] == [1, 2]
    seam = done.versions[1].start
    assert explained(done, 1)[:seam].max() <= 1e-4
    assert explained(done, 2)[seam:].max() > 1e-4  # under keys and values of the old weights
    assert explained(done, 2)[seam:].mean() < explained(done, 1)[seam:].mean()


async def test_replicas_that_do_not_agree_fail_every_score(engine: VLLMEngine, tmp_path: Path) -> None:
    other = publish(tmp_path / "w", 77, seed=6)
    member = engine._fleet.members[1]
    await member.replica.load(str(other.path), engine._fleet.holdings.label)
    with pytest.raises(FailureError, match="the replicas do not sample with the same weights"):
        await engine.score([PROMPT])
    await put_in_force(engine, publish(tmp_path / "v", 6))
    await engine.score([PROMPT])


async def test_a_killed_replicas_requests_go_on_elsewhere_and_it_comes_back_with_the_newest_weights(
    engine: VLLMEngine, tmp_path: Path, said: real.Said
) -> None:
    weights = [publish(tmp_path / str(version), version) for version in (7, 8)]
    await put_in_force(engine, weights[0])
    tasks, counts = await begin(engine, 20, "killed")
    group = processes(engine)[0].pid
    server = next(process for process in living(group) if process.ppid() == group)
    os.kill(server.pid, signal.SIGKILL)
    await until("the death to be noticed", lambda: len(engine._fleet.up) == 1)
    enough = [min(count + 17, LONG.max_tokens) for count in counts]  # more than two chunks, were they on their way
    await until("its requests to go on elsewhere", lambda: all(map(operator.ge, counts, enough)))
    # A publish while it is away: on the living one at once, on the dead one before it gets anything.
    await put_in_force(engine, weights[1])
    done = await asyncio.gather(*tasks)
    moved = 0
    for one in done:
        assert (len(one.output_ids), one.finish) == (LONG.max_tokens, Finish.LENGTH)
        check_spans(one.versions, LONG.max_tokens)
        versions = [span.version for span in one.versions]
        moved += versions[:2] == [7, 7]
        assert versions[-1] in (7, 8)
        first = one.versions[0].end
        assert explained(one, 7)[:first].max() <= 1e-4
        last = one.versions[-1]
        assert explained(one, last.version)[last.start :].max() <= 1e-4
    assert moved == 2
    assert living(group) == []
    await until("the replica to come back", lambda: len(engine._fleet.up) == 2)
    assert said.has("replica 0 is back")
    (scored,) = await engine.score([PROMPT])  # of both, which agree
    np.testing.assert_allclose(scored, logprobs(8, PROMPT), atol=1e-4)
    again = await asyncio.gather(*(engine.generate(PROMPT, Sampling(8), session=f"n{i}") for i in range(4)))
    assert all(explained(one, 8).max() <= 1e-4 for one in again)


async def test_a_hung_replica_is_treated_as_dead_and_started_again(
    engine: VLLMEngine, tmp_path: Path, said: real.Said
) -> None:
    version = 9
    await put_in_force(engine, publish(tmp_path / "9", version))  # read again by the one that is started again
    tasks, _ = await begin(engine, 20, "hung")
    group = processes(engine)[1].pid
    for process in living(group):
        os.kill(process.pid, signal.SIGSTOP)
    done = await asyncio.gather(*tasks)
    assert said.has("replica 1 is in trouble: it has given no sign of life")
    assert sorted(len(one.versions) for one in done) == [1, 1, 2, 2]
    for one in done:
        assert len(one.output_ids) == LONG.max_tokens
        assert explained(one, version).max() <= 1e-4
    await until("the replica to come back", lambda: len(engine._fleet.up) == 2)
    assert living(group) == []
    await engine.score([PROMPT])
