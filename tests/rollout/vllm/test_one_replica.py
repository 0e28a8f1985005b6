"""One real vLLM: updates in flight, adapters, refusals, both endpoints, the gateway over it, and its own death."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from quintain.calling.connections import async_http_client
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Sampling, Weights
from quintain.rollout.engines.vllm.dialect import CompletionApi
from quintain.rollout.engines.vllm.engine import VLLMEngine
from quintain.rollout.engines.vllm.probe import Wanted, probe
from quintain.rollout.engines.vllm.start import open_vllm
from quintain.rollout.vllm_plugin.access import KEY_VARIABLE
from quintain.rollout.weights.canary import Canary, check
from quintain.trajectory import Trajectory, check_spans, to_segments

from ...launch.runs import WORDS
from ..gateway.stage import ADD, staged
from ..test_engine_conformance import (
    test_a_cancelled_request_frees_its_slot,
    test_an_answer_without_a_stop_is_as_long_as_it_may_be,
    test_closing_ends_what_is_in_flight_with_a_cancelled_failure,
    test_more_requests_than_fit_are_all_answered,
    test_nothing_is_sampled_between_pause_and_resume,
    test_weights_that_are_not_there_change_nothing,
)
from . import real
from .real import MAX_LENGTH, PROMPT, experiment, explained, living, logprobs, model_folder, processes, publish, until

__all__ = [  # the conformance suite, as far as a server without seeds can be asked
    "test_a_cancelled_request_frees_its_slot",
    "test_an_answer_without_a_stop_is_as_long_as_it_may_be",
    "test_closing_ends_what_is_in_flight_with_a_cancelled_failure",
    "test_more_requests_than_fit_are_all_answered",
    "test_nothing_is_sampled_between_pause_and_resume",
    "test_weights_that_are_not_there_change_nothing",
]

pytestmark = [
    pytest.mark.needs_vllm,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
]

LONG = Sampling(400)  # a second or more: what is done "in flight" is done at once, its weights written before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("one") / "model")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: Path) -> AsyncIterator[VLLMEngine]:
    """The engine that owns the server. It has version 1 in force, and adapters on."""
    config = experiment(model, {"max_lora_rank": 8})
    async with real.serving(config, model.parent / "logs") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def engine(server: VLLMEngine, model: Path) -> AsyncIterator[VLLMEngine]:
    """Another engine, fresh, on the same server."""
    made = await asyncio.to_thread(elsewhere, server, model)
    yield made
    await made.close()


def elsewhere(server: VLLMEngine, model: Path, **vllm: Any) -> VLLMEngine:
    options = {**real.reached(processes(server)[0]), "max_lora_rank": 8, **vllm}
    return open_vllm(experiment(model, options), logs=model.parent / "none", report=real.Said())


async def in_flight(engine: VLLMEngine, tokens: int = 20) -> asyncio.Task[Any]:
    before = engine.stats().output_tokens
    task = asyncio.ensure_future(engine.generate(PROMPT, LONG, session="long"))
    await until("tokens", lambda: engine.stats().output_tokens >= before + tokens)
    return task


def canary(version: int) -> Canary:
    rows = (PROMPT, PROMPT[::-1].copy())
    return Canary(rows, tuple(logprobs(version, row).astype(np.float32) for row in rows), 1e-3)


async def test_an_update_in_flight_leaves_a_seam_and_all_after_it_is_of_the_new_weights_alone(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    await engine.load(publish(tmp_path / "1", 1))
    second = publish(tmp_path / "2", 2)
    running = await in_flight(engine)
    await engine.pause()
    sampled = engine.stats().output_tokens
    await engine.load(second)
    check(canary(2), await engine.score(canary(2).rows), 2)
    assert engine.stats().output_tokens == sampled
    await engine.resume()
    done = await running
    check_spans(done.versions, LONG.max_tokens)
    assert [(span.version, span.start) for span in done.versions] == [(1, 0), (2, sampled)]
    assert explained(done, 1)[:sampled].max() <= 1e-4
    assert explained(done, 2)[sampled:].max() <= 1e-4


@pytest.mark.parametrize("part", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
async def test_the_canary_refuses_corrupted_weights(engine: VLLMEngine, tmp_path: Path, part: str) -> None:
    good = publish(tmp_path / "good", 3)
    bad = tmp_path / "bad"
    bad.mkdir()
    state = load_file(good.path / "model.safetensors")
    state[part] = state[part].flip(0).contiguous()
    save_file(state, bad / "model.safetensors")
    await engine.pause()
    await engine.load(Weights(bad, 3))
    with pytest.raises(FailureError, match="does not sample with the weights of version 3"):
        check(canary(3), await engine.score(canary(3).rows), 3)
    await engine.load(good)
    assert check(canary(3), await engine.score(canary(3).rows), 3).max <= 1e-4
    await engine.resume()


async def test_weights_of_another_model_are_refused_by_name_and_the_old_ones_stay(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    await engine.load(publish(tmp_path / "1", 1))
    state = load_file(tmp_path / "1" / "model.safetensors")
    norm = state["model.norm.weight"]
    for change, named in (
        ({"model.norm.weight": None}, "missing: model.norm.weight"),
        ({"model.extra.weight": norm.clone()}, "not the model's: model.extra.weight"),
        (
            {"model.norm.weight": torch.cat([norm, norm])},
            r"model.norm.weight has shape \[512\], the model's is \[256\]",
        ),
    ):
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(FailureError, match=named) as caught:
            await engine.load(Weights(folder, 2))
        assert caught.value.failure.kind is FailureKind.REJECTED
        assert caught.value.failure.stage is Stage.PUBLISH
        assert "\n" not in caught.value.failure.message
    assert engine.stats().version == 1
    check(canary(1), await engine.score(canary(1).rows), 1)
    done = await engine.generate(PROMPT, Sampling(4), session="s")
    assert explained(done, 1).max() <= 1e-4


def adapter(folder: Path, seed: int) -> tuple[Path, Any]:
    """A PEFT adapter over the model of seed 1, and the model that it makes of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM(real.llama(1).config)
    base.load_state_dict(real.llama(1).state_dict())
    torch.manual_seed(seed)
    options = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    made = get_peft_model(base, options).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    made.save_pretrained(folder)
    return folder, made


async def test_adapters_swap_under_names_of_their_versions(engine: VLLMEngine, tmp_path: Path) -> None:
    await engine.load(publish(tmp_path / "base", 1))
    first, first_model = adapter(tmp_path / "a", 5)
    second, second_model = adapter(tmp_path / "b", 6)
    await engine.load(Weights(first, 2))
    done = await engine.generate(PROMPT, Sampling(8), session="s")
    assert [span.version for span in done.versions] == [2]
    assert explained(done, first_model).max() <= 1e-4
    assert explained(done, 1).max() > 1e-2
    running = await in_flight(engine)
    await engine.load(Weights(second, 3))
    done = await running
    assert [span.version for span in done.versions] == [2, 3]
    seam = done.versions[1].start
    assert explained(done, first_model)[:seam].max() <= 1e-4
    assert explained(done, second_model)[seam:].max() <= 1e-4
    (scored,) = await engine.score([PROMPT])
    np.testing.assert_allclose(scored, logprobs(second_model, PROMPT), atol=1e-4)
    names = await engine._fleet.members[0].replica.adapters()
    assert [name for name in names if name.startswith(engine._fleet.holdings.tag)] == [
        engine._fleet.holdings.adapter_name
    ]
    await engine.load(publish(tmp_path / "new", 4))  # a whole model comes without an adapter
    done = await engine.generate(PROMPT, Sampling(4), session="s")
    assert explained(done, 4).max() <= 1e-4


async def test_the_fallback_endpoint_gives_the_same_tokens_and_scores(engine: VLLMEngine, tmp_path: Path) -> None:
    await engine.load(publish(tmp_path / "1", 1))
    (expected,) = await engine.score([PROMPT])
    engine._fleet.members[0].replica.dialect = CompletionApi.COMPLETIONS
    second = publish(tmp_path / "2", 2)
    running = await in_flight(engine)
    await engine.load(second)
    done = await running
    check_spans(done.versions, LONG.max_tokens)
    assert [span.version for span in done.versions] == [1, 2]
    seam = done.versions[1].start
    assert explained(done, 1)[:seam].max() <= 1e-4
    assert explained(done, 2)[seam:].max() <= 1e-4
    await engine.load(publish(tmp_path / "3", 3, seed=1))
    assert np.array_equal((await engine.score([PROMPT]))[0], expected)


async def test_stops_are_kept_and_the_longest_request_ends_at_the_models_length(engine: VLLMEngine) -> None:
    greedy = Sampling(12, temperature=0.0)
    whole = await engine.generate(PROMPT, greedy, session="s")
    stop = int(whole.output_ids[5])
    first = int(np.argmax(whole.output_ids == stop))
    done = await engine.generate(PROMPT, Sampling(12, temperature=0.0, stop_ids=(stop, 10**6)), session="s")
    assert np.array_equal(done.output_ids, whole.output_ids[: first + 1])
    said = await engine.generate(
        PROMPT, Sampling(12, temperature=0.0, said=lambda tokens: len(tokens) == 3), session="s"
    )
    assert (said.output_ids.tolist(), said.finish.value) == (whole.output_ids[:3].tolist(), "stop")
    prompt = np.arange(MAX_LENGTH - 3, dtype=np.int32)
    done = await engine.generate(prompt, Sampling(50), session="s")
    assert (len(done.output_ids), done.finish.value) == (3, "length")
    with pytest.raises(FailureError, match="shorten the prompt"):
        await engine.generate(np.zeros(MAX_LENGTH, dtype=np.int32), Sampling(1), session="s")


async def test_prefixes_are_found_again_by_the_same_version_only(engine: VLLMEngine, tmp_path: Path) -> None:
    prompt = np.arange(100, 300, dtype=np.int32)

    async def hits() -> int:
        found = (await engine._fleet.members[0].replica.look()).prefix_hits
        await engine.generate(prompt, Sampling(1), session="s")
        return (await engine._fleet.members[0].replica.look()).prefix_hits - found

    assert await hits() == 0
    assert await hits() >= 160
    await engine.load(publish(tmp_path / "1", 1))
    assert await hits() == 0


async def test_a_server_that_lacks_something_is_refused_in_one_line(server: VLLMEngine, tmp_path: Path) -> None:
    url, key = processes(server)[0].url, processes(server)[0].launch.environ[KEY_VARIABLE]
    good = Wanted(words=WORDS, max_length=MAX_LENGTH, keep=True, folder=True, adapters=True)
    said = real.Said()
    found = await asyncio.to_thread(probe, url, good, api_key=key, report=said)
    assert (found.max_length, found.dialect, said.lines) == (MAX_LENGTH, CompletionApi.GENERATE, [])
    for change, line in (({"words": 60000}, "serves another model"), ({"max_length": 4096}, "--max-model-len 4096")):
        wanted = Wanted(**{**{name: getattr(good, name) for name in Wanted.__slots__}, **change})
        with pytest.raises(QuintainError, match=line):
            await asyncio.to_thread(probe, url, wanted, api_key=key, report=said)
    with pytest.raises(QuintainError, match="wants a key"):
        await asyncio.to_thread(probe, url, good, api_key=None, report=said)
    with pytest.raises(QuintainError, match="is it running"):
        await asyncio.to_thread(probe, "http://127.0.0.1:9", good, api_key=None, report=said)


async def test_a_server_that_a_run_has_started_answers_nobody_without_the_runs_key(server: VLLMEngine) -> None:
    async with async_http_client(processes(server)[0].url) as http:
        assert (await http.get("/health")).status_code == 200
        for path in [path for path in (await schema_paths(server)) if path != "/health"]:
            for method in ("GET", "POST"):
                answer = await http.request(method, path, json={}, headers={"authorization": "Bearer guess"})
                assert answer.status_code == 401, (method, path)


async def schema_paths(server: VLLMEngine) -> list[str]:
    """Every path of the server, as its own schema lists them."""
    process = processes(server)[0]
    async with async_http_client(process.url, process.launch.environ[KEY_VARIABLE]) as http:
        paths = list((await http.get("/openapi.json")).json()["paths"])
    assert {"/pause", "/update_weights", "/v1/models"} <= set(paths)
    return paths


def sound(trajectory: Trajectory) -> None:
    """Every sampled token is in one segment, with the log-probability that transformers gives it there."""
    segments = to_segments(trajectory)
    assert sum(int(segment.mask.sum()) for segment in segments) == trajectory.output_tokens > 0
    for segment in segments:
        sampled = segment.mask[1:]
        assert np.abs(segment.logprobs[1:] - logprobs(0, segment.ids))[sampled].max() < 1e-4


async def test_openai_s_client_drives_vllm_and_every_token_is_explained(
    engine: VLLMEngine, model: Path, tmp_path: Path
) -> None:
    await engine.load(publish(tmp_path / "0", 1, seed=0))

    async def talk(client: Any, name: str, *, streaming: bool) -> None:
        messages: list[Any] = [{"role": "system", "content": name}]
        for turn in range(3):
            messages.append({"role": "user", "content": f"{turn}?"})
            asked: dict[str, Any] = {"model": "policy", "messages": messages, "tools": [ADD]}
            answer = await client.chat.completions.create(**asked, stream=streaming)
            if streaming:
                said = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
                messages.append({"role": "assistant", "content": said})
            else:
                messages.append(answer.choices[0].message)

    chat = TemplateChat(load_tokenizer(str(model)))
    async with staged(engine, chat=chat, sampling=Sampling(10)) as stage:
        session, client = await stage.open()
        await asyncio.gather(talk(client, "one", streaming=False), talk(client, "two", streaming=True))
        trajectory = await stage.reward(session, 1.0)
        forks = [turn.fork for turn in trajectory.turns]
        assert forks == [None, None, None, "agent_started_conversation", None, None]
        assert len(to_segments(trajectory)) == 2
        sound(trajectory)

        session, client = await stage.open()
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        answer = await client.chat.completions.create(model="policy", messages=messages, n=2, logprobs=True)
        messages += [answer.choices[1].message, {"role": "user", "content": "and?"}]
        await client.chat.completions.create(model="policy", messages=messages)
        messages[1] = {"role": "assistant", "content": "as I have it"}
        await client.chat.completions.create(model="policy", messages=messages)
        trajectory = await stage.reward(session, 0.0)
        assert sorted(str(turn.fork) for turn in trajectory.turns) == [
            "None", "None", "agent_resampled", "agent_rewrote_history",
        ]  # fmt: skip
        sound(trajectory)


async def test_the_only_replica_is_started_again_and_its_requests_go_on(server: VLLMEngine, tmp_path: Path) -> None:
    await server.load(publish(tmp_path / "1", 1))
    running = await in_flight(server, 40)
    group = processes(server)[0].pid
    core = next(one for one in living(group) if "EngineCore" in " ".join(one.cmdline()))
    os.kill(core.pid, signal.SIGKILL)
    done = await running
    assert [span.version for span in done.versions] == [1, 1]
    assert len(done.output_ids) == LONG.max_tokens
    assert done.versions[1].start >= 20
    assert explained(done, 1).max() <= 1e-4
    assert living(group) == []
    assert server.stats().running == 0
