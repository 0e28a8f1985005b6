"""The fake engine: what tests of the layers above rely on, beyond what every engine keeps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.config import ExperimentConfig
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.engines.base import Sampling, Weights
from quintain.rollout.engines.choose import make_engine
from quintain.trajectory import Finish

from ..fake_engine import FakeEngine, FakeModel, crash_on, hang_on

PROMPT = np.array([1, 2, 3], dtype=np.int32)
STOP = 9
FAKE = Path(__file__).parents[1] / "fake_engine.py"
SHORT = Sampling(max_tokens=8, stop_ids=(STOP,))


class VirtualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await asyncio.sleep(0)
            self.now = min(until, self.now + 0.25)

    def clock(self) -> float:
        return self.now


def publish(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    return folder


@given(
    ids=st.lists(st.integers(0, 20), max_size=12),
    limit=st.integers(1, 12),
    stop_ids=st.lists(st.integers(0, 20), max_size=2).map(tuple),
)
def test_an_answer_is_the_policys_up_to_its_first_stop_or_the_limit(ids, limit, stop_ids) -> None:
    engine = FakeEngine(lambda prompt, sampling: ids)
    done = asyncio.run(engine.generate(PROMPT, Sampling(limit, stop_ids=stop_ids), session="s"))
    said = [*ids, *stop_ids[:1]]
    stops = [at for at, token in enumerate(said) if token in stop_ids]
    end = min([limit, len(said), *(at + 1 for at in stops[:1])])
    assert done.output_ids.tolist() == said[:end]
    assert done.finish is (Finish.STOP if stops and stops[0] < limit else Finish.LENGTH)
    np.testing.assert_array_equal(done.logprobs, engine.model.follow(PROMPT, said[:end], 1.0))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
async def test_the_default_policy_samples_the_model_and_stops(temperature: float) -> None:
    engine = FakeEngine()
    done = [
        await engine.generate(PROMPT, Sampling(40, temperature=temperature, seed=seed, stop_ids=(STOP,)), session="s")
        for seed in range(50)
    ]
    assert {one.finish for one in done} == {Finish.STOP}
    assert all(one.output_ids[-1] == STOP for one in done)
    assert len({len(one.output_ids) for one in done}) > 5
    again = await engine.generate(PROMPT, Sampling(40, temperature=temperature, seed=7, stop_ids=(STOP,)), session="t")
    assert again.output_ids.tolist() == done[7].output_ids.tolist()


def test_the_model_is_a_distribution_that_follows_from_the_bytes_of_the_weights() -> None:
    model, same, other = FakeModel(b"a"), FakeModel(b"a"), FakeModel(b"b")
    assert np.exp(model.logprobs(5)).sum() == pytest.approx(1)
    assert np.array_equal(model.logprobs(5), same.logprobs(5))
    assert np.abs(model.logprobs(5) - other.logprobs(5)).max() > 0.1
    assert np.abs(model.logprobs(5) - model.logprobs(6)).max() > 0.1


def test_the_model_samples_what_it_says_it_does() -> None:
    model, generator = FakeModel(b"a", words=5), np.random.default_rng(0)
    counts = np.bincount([model.sample(3, 1.0, generator) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / 20_000, np.exp(model.logprobs(3)), atol=0.015)


async def test_a_call_crashes_when_told_and_only_then() -> None:
    engine = FakeEngine(fail=crash_on(2, token=1))
    results = [await asyncio.gather(engine.generate(PROMPT, SHORT, session="s"), return_exceptions=True) for _ in "abc"]
    assert [isinstance(result[0], FailureError) for result in results] == [False, True, False]
    assert results[1][0].failure.kind is FailureKind.CRASHED
    assert engine.calls == 3


async def test_a_call_hangs_until_it_is_told_to_go_on() -> None:
    free = asyncio.Event()
    engine = FakeEngine(lambda prompt, sampling: [4, 5, 6], fail=hang_on(1, free, token=2))
    hanging = asyncio.ensure_future(engine.generate(PROMPT, SHORT, session="s"))
    await asyncio.sleep(0)
    assert engine.calls == 1
    for _ in range(3):
        await engine.generate(PROMPT, SHORT, session="t")
    assert not hanging.done()
    assert engine.stats().output_tokens == 2 + 3 * 4
    free.set()
    assert (await hanging).output_ids.tolist() == [4, 5, 6, STOP]


async def test_whatever_a_policy_raises_is_a_failure() -> None:
    def policy(prompt: object, sampling: object) -> list[int]:
        raise ZeroDivisionError("told to")

    with pytest.raises(FailureError, match="ZeroDivisionError: told to") as caught:
        await FakeEngine(policy).generate(PROMPT, SHORT, session="s")
    assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.CRASHED, Stage.GENERATE)


async def test_a_stale_engine_lies_about_its_version_and_its_scores_give_it_away(tmp_path: Path) -> None:
    folder = publish(tmp_path / "w", b"new")
    expected = FakeModel.of(folder).score(PROMPT)
    honest, stale = FakeEngine(), FakeEngine(stale=True)
    for engine in (honest, stale):
        await engine.load(Weights(folder, version=4))
        assert engine.stats().version == 4
    assert np.array_equal((await honest.score([PROMPT]))[0], expected)
    assert np.abs((await stale.score([PROMPT]))[0] - expected).max() > 0.1


async def test_it_takes_the_time_its_latencies_say_and_no_more_calls_than_fit() -> None:
    time = VirtualTime()
    engine = FakeEngine(
        lambda prompt, sampling: [4] * 8,
        capacity=2,
        token_s=1.0,
        prompt_token_s=0.5,
        sleep=time.sleep,
        clock=time.clock,
    )
    await engine.generate(PROMPT, Sampling(8), session="s")
    assert time.now == 8 * 1.0 + 3 * 0.5
    assert engine.stats().busy_s == time.now
    calls = [asyncio.ensure_future(engine.generate(PROMPT, Sampling(8), session=f"{i}")) for i in range(5)]
    most = 0
    while not all(call.done() for call in calls):
        most = max(most, engine.stats().running)
        assert engine.stats().running + engine.stats().waiting <= 5
        await asyncio.sleep(0)
    assert most == 2
    assert engine.stats().output_tokens == 6 * 8


def experiment(folder: Path, engine: str) -> ExperimentConfig:
    (folder / "config.json").write_text('{"vocab_size": 50, "max_position_embeddings": 99}')
    rollout = {"engine": engine, "dtype": "float32"}
    return ExperimentConfig.model_validate(
        {"model": {"path": str(folder)}, "environment": {"name": "math"}, "rollout": rollout}
    )


def test_a_run_gets_the_engine_that_its_experiment_names_and_loads_no_torch(tmp_path: Path) -> None:
    config = experiment(tmp_path, f"{FAKE}:of_run").model_dump_json()
    code = f"""
import sys
from quintain.config import ExperimentConfig
from quintain.rollout.engines.choose import make_engine
engine = make_engine(ExperimentConfig.model_validate_json({config!r}), lambda: 0)
print(type(engine).__name__, engine.model.words, engine.max_length, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "FakeEngine 50 99 False\n"


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("no.where:engine", "there is no module 'no.where'"),
        ("no/where.py:engine", "there is no file"),
        (f"{FAKE}:of_rum", "has no 'of_rum' to call"),
        (f"{FAKE}:WORDS", "has no 'WORDS' to call"),
        ("builtins:repr", "gave a str: it must give an Engine"),
    ],
)
def test_what_is_no_engine_is_one_clear_line(tmp_path: Path, engine: str, says: str) -> None:
    with pytest.raises(QuintainError, match=says) as told:
        make_engine(experiment(tmp_path, engine), lambda: 0)
    assert "\n" not in str(told.value)


def test_an_engine_nobody_knows_is_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="'engine' is 'vlm': expected 'transformers', 'vllm', or an engine of your own"
    ):
        experiment(tmp_path, "vlm")
