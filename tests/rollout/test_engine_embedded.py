"""The embedded engine against transformers itself: numbers, batching, weights, lockstep, trouble."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import TopKLogitsWarper, TopPLogitsWarper

from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.engines.base import Completion, Sampling, Weights
from quintain.rollout.engines.contract import steady_length
from quintain.rollout.engines.embedded.engine import EmbeddedEngine
from quintain.rollout.engines.embedded.llama import LlamaNetwork
from quintain.rollout.engines.embedded.modules import ModuleNetwork

WORDS = 211
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def build(family: str, seed: int = 0, **options: Any) -> Any:
    """A tiny random model of a transformers family."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # not all ones and zeros, so that leaving one out shows
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

MODELS: dict[str, tuple[Callable[[], Any], type]] = {
    "llama": (lambda: build("Llama", attention_bias=True, mlp_bias=True), LlamaNetwork),
    "llama, tied": (lambda: build("Llama", tie_word_embeddings=True), LlamaNetwork),
    "llama, scaled rope": (
        lambda: build("Llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        LlamaNetwork,
    ),
    "mistral": (lambda: build("Mistral", sliding_window=None, head_dim=16), LlamaNetwork),
    "qwen2": (lambda: build("Qwen2"), LlamaNetwork),
    "qwen3": (lambda: build("Qwen3", head_dim=16), LlamaNetwork),
    "gpt2": (lambda: build("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=256), ModuleNetwork),
    "granite": (lambda: build("Granite", logits_scaling=4.0, attention_multiplier=0.3), ModuleNetwork),
    "gemma2": (lambda: build("Gemma2", head_dim=8, sliding_window=256, query_pre_attn_scalar=8), ModuleNetwork),
    "phi3": (lambda: build("Phi3", pad_token_id=0), ModuleNetwork),
}

PROMPTS = [
    np.random.default_rng(length).integers(0, WORDS, length).astype(np.int32) for length in (3, 40, 7, 31, 33, 7)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
async def start() -> Any:
    """Starts engines in float32 and closes them."""
    engines: list[EmbeddedEngine] = []

    def make(model: Any, **options: Any) -> EmbeddedEngine:
        engines.append(EmbeddedEngine(model, **{"dtype": "float32", **options}))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


async def sample(engine: EmbeddedEngine, *requests: tuple[np.ndarray, Sampling]) -> list[Completion]:
    return await asyncio.gather(
        *(engine.generate(prompt, sampling, session=f"{i:03}") for i, (prompt, sampling) in enumerate(requests))
    )


async def failure(awaitable: Awaitable[Any]) -> Any:
    with pytest.raises(FailureError) as caught:
        await awaitable
    return caught.value.failure


def plain_logprobs(model: Any, prompt: np.ndarray, done: Completion, sampling: Sampling) -> np.ndarray:
    """The log-probabilities of `done` by one plain forward pass and transformers' own warpers."""
    ids = torch.tensor(np.concatenate([prompt, done.output_ids]))[None].long()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / (sampling.temperature or 1.0)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    chosen: np.ndarray = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()
    return chosen


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
async def test_logprobs_are_those_of_a_plain_forward_pass(family: str, start: Any) -> None:
    make, network = MODELS[family]
    engine, model = start(make()), make()
    assert type(engine._decoder.network) is network
    settings = [
        Sampling(70, seed=1),
        Sampling(30, temperature=0.7, seed=2),
        Sampling(30, top_p=0.8, seed=3),
        Sampling(30, temperature=0.7, top_k=12, top_p=0.9, seed=4),
        Sampling(30, temperature=0),
        Sampling(1, seed=6),
    ]
    done = await sample(engine, *zip(PROMPTS, settings, strict=True))
    for prompt, sampling, one in zip(PROMPTS, settings, done, strict=True):
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, prompt, one, sampling), atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
async def test_scores_are_those_of_a_plain_forward_pass_however_it_is_cut(family: str, start: Any) -> None:
    make, _ = MODELS[family]
    model = make()
    engine, cut = start(make()), start(make(), prefill_tokens=1)
    for one, other, row in zip(await engine.score(PROMPTS), await cut.score(PROMPTS), PROMPTS, strict=True):
        ids = torch.tensor(row)[None].long()
        with torch.no_grad():
            plain = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
        np.testing.assert_allclose(one, plain, atol=1e-5)
        np.testing.assert_allclose(other, plain, atol=1e-5)


@pytest.mark.parametrize("family", ["llama, tied", "gpt2"])
async def test_greedy_answers_are_those_of_generate(family: str, start: Any) -> None:
    make, _ = MODELS[family]
    engine, model = start(make()), make()
    done = await sample(engine, *((prompt, Sampling(40, temperature=0)) for prompt in PROMPTS))
    for prompt, one in zip(PROMPTS, done, strict=True):
        ids = torch.tensor(prompt)[None].long()
        with torch.no_grad():
            theirs = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=WORDS)
        assert theirs[0, len(prompt) :].tolist() == one.output_ids.tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3", "granite"])
async def test_prompts_with_a_common_beginning_are_read_as_if_alone(family: str, start: Any) -> None:
    make, _ = MODELS[family]
    engine, model = start(make()), make()
    prompts = [np.concatenate([PROMPTS[1], PROMPTS[1], tail]) for tail in PROMPTS] + [np.tile(PROMPTS[1], 2)]
    await engine.pause()  # so that all are read together
    running = asyncio.ensure_future(
        sample(engine, *((prompt, Sampling(20, seed=i)) for i, prompt in enumerate(prompts)))
    )
    while engine.stats().waiting < len(prompts):  # noqa: ASYNC110 - its counters are all an engine says of its queue
        await asyncio.sleep(0)
    await engine.resume()
    for prompt, one in zip(prompts, await running, strict=True):
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, prompt, one, Sampling(1)), atol=1e-5)


async def test_the_beginning_that_prompts_share_is_computed_once(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(build("Llama"))
    beginning = np.tile(PROMPTS[1], 3)
    prompts = [np.concatenate([beginning, tail]).tolist() for tail in PROMPTS[:3]]
    tokens: list[int] = []
    real = LlamaNetwork._forward

    def counted(self: LlamaNetwork, ids: torch.Tensor, *rest: Any) -> Any:
        tokens.append(len(ids))
        return real(self, ids, *rest)

    monkeypatch.setattr(LlamaNetwork, "_forward", counted)
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    with torch.inference_mode():
        engine._decoder.network.prefill(ids, [len(prompt) for prompt in prompts])
    assert tokens == [len(beginning), 3 * (longest - len(beginning))]


async def test_samples_do_not_depend_on_the_company_they_are_drawn_in(start: Any) -> None:
    engine = start(build("Llama"))
    requests = [(PROMPTS[i % len(PROMPTS)], Sampling(5 + 3 * i, seed=i, temperature=1.0)) for i in range(20)]
    together = await sample(engine, *requests)
    for request, one in zip(requests, together, strict=True):
        (alone,) = await sample(engine, request)
        assert alone.output_ids.tolist() == one.output_ids.tolist()
        np.testing.assert_allclose(alone.logprobs, one.logprobs, atol=1e-5)


async def test_bfloat16_samples_score_close_to_float32(start: Any) -> None:
    model = build("Llama", initializer_range=0.1)
    engine = start(copy.deepcopy(model), dtype="bfloat16")
    (done,) = await sample(engine, (PROMPTS[1], Sampling(100, seed=1)))
    exact = plain_logprobs(model, PROMPTS[1], done, Sampling(100))
    assert np.abs(done.logprobs - exact).mean() < 0.02
    assert np.abs(done.logprobs - exact).max() > 1e-4  # it did compute in bfloat16


async def test_a_sequence_may_fill_the_whole_context(start: Any) -> None:
    engine, model = start(build("Llama")), build("Llama")
    assert engine.max_length == 256
    (done,) = await sample(engine, (PROMPTS[0], Sampling(10_000, seed=5)))
    assert len(done.output_ids) == 256 - len(PROMPTS[0])
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[0], done, Sampling(1)), atol=2e-5)


async def test_a_machine_that_cannot_pack_weights_gets_the_same_numbers(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintain.rollout.engines.embedded.packing.can_pack", lambda dtype: False)
    make, _ = MODELS["llama"]
    engine, model = start(make()), make()
    file = publish(tmp_path / "w", model.state_dict()) / "model.safetensors"
    await engine.load(Weights(tmp_path / "w", version=1))
    file.write_bytes(b"\0" * file.stat().st_size)  # what was loaded has nothing to do with the file any more
    (done,) = await sample(engine, (PROMPTS[1], Sampling(30, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[1], done, Sampling(1)), atol=1e-5)


# --- batching ---------------------------------------------------------------------------------------------------


async def test_a_prompt_that_many_share_is_read_once(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(build("Llama"))
    read: list[int] = []
    real = LlamaNetwork.prefill

    def counted(self: LlamaNetwork, ids: torch.Tensor, lengths: Any) -> Any:
        read.extend(lengths)
        return real(self, ids, lengths)

    monkeypatch.setattr(LlamaNetwork, "prefill", counted)
    await engine.pause()
    asked = asyncio.ensure_future(sample(engine, *((PROMPTS[i % 3], Sampling(4, seed=i)) for i in range(24))))
    while engine.stats().waiting < 24:  # noqa: ASYNC110 - its counters are all an engine says of its queue
        await asyncio.sleep(0)
    await engine.resume()
    await asked
    assert sorted(read) == sorted(len(prompt) for prompt in PROMPTS[:3])


async def test_a_short_request_joins_and_leaves_while_a_long_one_runs(start: Any) -> None:
    engine = start(build("Llama"))
    long = asyncio.ensure_future(sample(engine, (PROMPTS[0], Sampling(250, seed=1))))
    for count in range(5):
        await sample(engine, (PROMPTS[count + 1], Sampling(3, seed=count)))
    assert not long.done()
    await long


@pytest.mark.parametrize("options", [{"cache_bytes": 1}, {"prefill_tokens": 1}, {"max_batch": 1}, {"max_batch": 3}])
async def test_narrow_limits_change_no_sample(options: dict[str, int], start: Any) -> None:
    requests = [(prompt, Sampling(10 + 20 * (i % 3), seed=i)) for i, prompt in enumerate(PROMPTS)]
    wide = await sample(start(build("Llama")), *requests)
    narrow = await sample(start(build("Llama"), **options), *requests)
    for one, other in zip(wide, narrow, strict=True):
        assert one.output_ids.tolist() == other.output_ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


async def test_the_cache_is_never_computed_twice_within_a_turn(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(build("Llama"))
    tokens = 0
    real = LlamaNetwork._forward

    def counted(self: LlamaNetwork, ids: torch.Tensor, *rest: Any) -> Any:
        nonlocal tokens
        tokens += len(ids)
        return real(self, ids, *rest)

    monkeypatch.setattr(LlamaNetwork, "_forward", counted)
    await sample(engine, (PROMPTS[1], Sampling(50, seed=1)))
    assert tokens == len(PROMPTS[1]) + 49  # nothing needs to be known after the last token


# --- weights ----------------------------------------------------------------------------------------------------


def publish(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("family", MODELS)
async def test_loaded_weights_are_used_everywhere(family: str, start: Any, tmp_path: Path) -> None:
    make, _ = MODELS[family]
    new = make()
    with torch.no_grad():
        for tensor in new.parameters():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(9)))
    engine = start(make())
    await engine.load(Weights(publish(tmp_path / "w", new.state_dict()), version=3))
    (done,) = await sample(engine, (PROMPTS[1], Sampling(30, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(new, PROMPTS[1], done, Sampling(1)), atol=2e-5)
    ids = torch.tensor(PROMPTS[1])[None].long()
    with torch.no_grad():
        plain = new(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose((await engine.score([PROMPTS[1]]))[0], plain, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_prepared_weights_wait_for_their_load_and_serve_no_other(family: str, start: Any, tmp_path: Path) -> None:
    make, _ = MODELS[family]
    before, first, second = make(), make(), make()
    with torch.no_grad():
        for model, factor in ((first, 0.5), (second, 1.5)):
            for tensor in model.parameters():
                tensor.mul_(factor)
    one, two = (publish(tmp_path / str(n), m.state_dict()) for n, m in enumerate((first, second), 1))
    engine = start(make())
    greedy = Sampling(8, temperature=0.0)

    await engine.prepare(Weights(one, version=1))
    (done,) = await sample(engine, (PROMPTS[1], greedy))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(before, PROMPTS[1], done, Sampling(1)), atol=2e-5)

    await engine.load(Weights(two, version=2))  # another than was prepared
    (done,) = await sample(engine, (PROMPTS[1], greedy))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(second, PROMPTS[1], done, Sampling(1)), atol=2e-5)

    await engine.prepare(Weights(one, version=3))
    (one / "model.safetensors").unlink()  # it is not read again
    await engine.load(Weights(one, version=3))
    (done,) = await sample(engine, (PROMPTS[1], greedy))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(first, PROMPTS[1], done, Sampling(1)), atol=2e-5)

    with pytest.raises(FailureError, match="there are no weights"):
        await engine.prepare(Weights(one, version=4))


@pytest.mark.parametrize("tied_name_in_file", [True, False])
async def test_tied_weights_are_loaded_with_and_without_their_second_name(
    tied_name_in_file: bool, start: Any, tmp_path: Path
) -> None:
    new = build("Llama", seed=1, tie_word_embeddings=True)
    state = new.state_dict()
    if not tied_name_in_file:
        del state["lm_head.weight"]
    engine = start(build("Llama", tie_word_embeddings=True))
    await engine.load(Weights(publish(tmp_path / "w", state), version=1))
    (done,) = await sample(engine, (PROMPTS[1], Sampling(30, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(new, PROMPTS[1], done, Sampling(1)), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_weights_of_another_type_are_cast(family: str, start: Any, tmp_path: Path) -> None:
    make, _ = MODELS[family]
    rounded = {name: tensor.bfloat16() for name, tensor in make().state_dict().items()}
    model = make()
    model.load_state_dict(rounded)
    engine = start(make())
    await engine.load(Weights(publish(tmp_path / "w", rounded), version=1))
    (done,) = await sample(engine, (PROMPTS[1], Sampling(30, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[1], done, Sampling(1)), atol=1e-5)


async def test_bfloat16_modules_keep_the_positions_that_transformers_gives_them(start: Any, tmp_path: Path) -> None:
    build("Granite", max_position_embeddings=2048, initializer_range=0.5).save_pretrained(tmp_path)
    engine = start(tmp_path, dtype="bfloat16")
    assert type(engine._decoder.network) is ModuleNetwork
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    row = np.random.default_rng(0).integers(0, WORDS, 1500).astype(np.int32)
    ids = torch.tensor(row)[None].long()
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits[0, :-1].float()
    plain = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    (ours,) = await engine.score([row])
    assert np.abs(ours - plain).mean() < 0.05 * plain.std()


def without(state: dict[str, torch.Tensor]) -> None:
    del state["model.layers.1.mlp.up_proj.weight"]


def with_more(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3)


def misshapen(state: dict[str, torch.Tensor]) -> None:
    state["model.norm.weight"] = torch.zeros(31)


def without_head(state: dict[str, torch.Tensor]) -> None:
    del state["lm_head.weight"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (without, "1 missing, such as model.layers.1.mlp.up_proj.weight"),
        (with_more, "1 unexpected, such as model.layers.2.mlp.up_proj.weight"),
        (misshapen, "1 misshapen, such as model.norm.weight is [31], not [32]"),
        (without_head, "1 missing, such as lm_head.weight"),
    ],
)
@pytest.mark.parametrize("family", ["Llama", "Granite"])
async def test_weights_of_another_model_are_refused_and_the_old_ones_stay(
    family: str, spoil: Any, named: str, start: Any, tmp_path: Path
) -> None:
    engine = start(build(family))
    before = await engine.score([PROMPTS[1]])
    state = build(family, seed=1).state_dict()
    spoil(state)
    failed = await failure(engine.load(Weights(publish(tmp_path / "w", state), version=1)))
    assert (failed.kind, failed.stage, failed.retryable) == (FailureKind.REJECTED, Stage.PUBLISH, False)
    assert named in failed.message
    assert np.array_equal((await engine.score([PROMPTS[1]]))[0], before[0])
    assert engine.stats().version == 0


async def test_a_file_cut_short_is_refused_and_the_old_weights_stay(start: Any, tmp_path: Path) -> None:
    engine = start(build("Llama"))
    before = await engine.score([PROMPTS[1]])
    file = publish(tmp_path / "w", build("Llama", seed=1).state_dict()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    failed = await failure(engine.load(Weights(tmp_path / "w", version=1)))
    assert (failed.kind, failed.stage) == (FailureKind.INVALID, Stage.PUBLISH)
    assert np.array_equal((await engine.score([PROMPTS[1]]))[0], before[0])


@pytest.mark.parametrize("family", ["llama", "llama, tied", "qwen3", "gpt2"])
async def test_loaded_weights_do_not_depend_on_the_file_any_more(family: str, start: Any, tmp_path: Path) -> None:
    make, _ = MODELS[family]
    engine = start(make())
    before = await engine.score([PROMPTS[1]])
    file = publish(tmp_path / "w", make().state_dict()) / "model.safetensors"
    await engine.load(Weights(tmp_path / "w", version=1))
    with file.open("r+b") as overwritten:
        overwritten.write(b"\xff" * file.stat().st_size)
    assert np.array_equal((await engine.score([PROMPTS[1]]))[0], before[0])


async def test_each_side_of_a_seam_is_of_its_own_weights(start: Any, tmp_path: Path) -> None:
    old, new = build("Llama"), build("Llama", seed=1)
    engine = start(build("Llama"))
    requests = [(prompt, Sampling(80, seed=i)) for i, prompt in enumerate(PROMPTS)]
    running = asyncio.ensure_future(sample(engine, *requests))
    while engine.stats().output_tokens < 60:  # noqa: ASYNC110 - its counters are all an engine says of its progress
        await asyncio.sleep(0)
    await engine.load(Weights(publish(tmp_path / "w", new.state_dict()), version=1))
    for (prompt, sampling), done in zip(requests, await running, strict=True):
        first, second = done.versions
        assert (first.version, second.version) == (0, 1)
        by_old, by_new = (plain_logprobs(model, prompt, done, sampling) for model in (old, new))
        np.testing.assert_allclose(done.logprobs[: first.end], by_old[: first.end], atol=1e-5)
        np.testing.assert_allclose(done.logprobs[second.start :], by_new[second.start :], atol=1e-5)


# --- lockstep ---------------------------------------------------------------------------------------------------


async def lockstep_run(order: list[int], gaps: random.Random) -> list[Completion]:
    """Twelve two-turn sessions whose requests arrive in `order`, with the loop turning at random between them."""
    alive = len(order)
    engine = EmbeddedEngine(build("Llama"), dtype="bfloat16", max_batch=8, expected=lambda: alive)
    results: dict[int, list[Completion]] = {}

    async def session(member: int) -> None:
        nonlocal alive
        prompt = PROMPTS[member % len(PROMPTS)]
        first = await engine.generate(prompt, Sampling(5 + member, seed=member), session=f"s{member:02}")
        results[member] = [first]
        if member % 3:  # the others end after one turn
            for _ in range(gaps.randrange(4)):
                await asyncio.sleep(0)
            longer = np.concatenate([prompt, first.output_ids])
            results[member].append(await engine.generate(longer, Sampling(9, seed=member), session=f"s{member:02}"))
        alive -= 1
        engine.kick()

    tasks = []
    for member in order:
        tasks.append(asyncio.ensure_future(session(member)))
        for _ in range(gaps.randrange(6)):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    await engine.close()
    return [one for member in sorted(results) for one in results[member]]


async def test_lockstep_gives_the_same_bits_whoever_comes_first() -> None:
    order = list(range(12))
    expected = await lockstep_run(order, random.Random(0))
    assert len(expected) == 12 + 8
    for seed in range(1, 4):
        random.Random(seed).shuffle(order)
        again = await lockstep_run(order, random.Random(seed))
        for one, other in zip(expected, again, strict=True):
            assert one.output_ids.tobytes() == other.output_ids.tobytes()
            assert one.logprobs.tobytes() == other.logprobs.tobytes()


async def test_lockstep_waits_until_everybody_who_may_come_has_come(start: Any) -> None:
    able = 3
    engine = start(build("Llama"), expected=lambda: able)
    tasks = [asyncio.ensure_future(sample(engine, (PROMPTS[i], Sampling(3)))) for i in range(2)]
    for _ in range(5):
        await engine.score([PROMPTS[0]])  # the engine has had time to look into its inbox
    assert (engine.stats().waiting, engine.stats().output_tokens) == (2, 0)
    able = 2
    engine.kick()
    await asyncio.gather(*tasks)
    assert engine.stats().output_tokens == 6


async def test_lockstep_says_so_and_goes_on_without_those_who_wait_for_what_the_others_hold(start: Any) -> None:
    place, said = asyncio.Semaphore(1), list[str]()
    engine = start(build("Llama"), expected=lambda: 2, patience_s=0.2, report=said.append)

    async def play(prompt: np.ndarray) -> None:
        async with place:
            await sample(engine, (prompt, Sampling(3)))

    await asyncio.gather(*map(play, PROMPTS[:2]))
    assert engine.stats().output_tokens == 6
    assert len(said) == 2
    assert all(line.startswith("1 of 2 episodes are sampled without the others, which did not come") for line in said)


async def test_lockstep_admits_nobody_while_a_cohort_runs(start: Any) -> None:
    able = 1
    engine = start(build("Llama"), expected=lambda: able)
    cohort = asyncio.ensure_future(sample(engine, (PROMPTS[0], Sampling(200, seed=1))))
    while engine.stats().output_tokens < 3:  # noqa: ASYNC110 - its counters are all an engine says of its progress
        await asyncio.sleep(0)
    late = asyncio.ensure_future(sample(engine, (PROMPTS[1], Sampling(2))))
    await asyncio.wait([cohort, late], return_when=asyncio.FIRST_COMPLETED)
    assert cohort.done()
    await late


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (lambda: build("Mamba", state_size=4), {"max_length": 64}, "recurrent state"),
        (lambda: build("Mistral", sliding_window=32), {}, "set max_length to at most 32"),
        (lambda: build("Qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1), {}, "last 16"),
        (lambda: ROPES["longrope"][0](), {"max_length": 33}, "beyond 32 tokens .*set max_length to at most 32"),
        (lambda: ROPES["longrope"][0](), {}, r"set max_length to at most 32 \(it is 256\)"),
        (lambda: build("Llama"), {"max_length": 257}, "positions for 256 tokens"),
        (lambda: build("Llama"), {"dtype": "float16"}, "float32 or bfloat16"),
        (lambda: build("Llama"), {"device": "cuda"}, "torch sees no GPU here"),
        (lambda: "/nowhere/at/all", {}, "no model at /nowhere/at/all"),
    ],
)
def test_a_model_that_cannot_be_run_faithfully_is_refused(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(QuintainError, match=named):
        EmbeddedEngine(make(), **{"dtype": "float32", **options})


ROPES: dict[str, tuple[Callable[..., Any], int]] = {
    "dynamic": (
        lambda: build("Llama", rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
        256,
    ),
    "longrope": (lambda: build("Phi3", pad_token_id=0, rope_parameters=LONG, original_max_position_embeddings=32), 32),
}


@pytest.mark.parametrize(("make", "steady"), ROPES.values(), ids=ROPES)
def test_a_row_says_the_same_beside_any_other_up_to_the_steady_length_and_not_beyond(make: Any, steady: int) -> None:
    model = make()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, WORDS, (2, steady + 8)))

    def said(longest: int) -> torch.Tensor:
        """Of the first row's 24 tokens, beside a row of `longest`."""
        with torch.inference_mode():
            out: torch.Tensor = model(input_ids=ids[:, :longest], use_cache=False).logits[0, :24]
        return out

    assert steady_length(model.config) == steady
    torch.testing.assert_close(said(steady), said(24), rtol=1e-5, atol=1e-5)
    assert float((said(steady + 8) - said(24)).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_rotary_positions_that_depend_on_nothing_else_bound_nothing(kind: str) -> None:
    more = {"original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} | (more if kind in ("yarn", "llama3") else {})
    assert steady_length(build("Llama", rope_parameters=rope).config) is None


async def test_a_window_as_long_as_the_sequence_is_no_window(start: Any) -> None:
    engine, model = start(build("Mistral", sliding_window=64), max_length=64), build("Mistral", sliding_window=64)
    (done,) = await sample(engine, (PROMPTS[1], Sampling(100, seed=1)))
    assert len(done.output_ids) == 24
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[1], done, Sampling(1)), atol=1e-5)


def test_a_network_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaNetwork, "_norm", lambda self, x, weight: x * weight)
    engine = EmbeddedEngine(build("Llama"), dtype="float32")
    assert type(engine._decoder.network) is ModuleNetwork
    asyncio.run(engine.close())


def test_a_model_that_no_network_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleNetwork.step
    monkeypatch.setattr(ModuleNetwork, "step", lambda self, ids, slots: real(self, ids, slots).roll(1, -1))
    with pytest.raises(QuintainError, match="GPT2LMHeadModel decodes differently"):
        EmbeddedEngine(MODELS["gpt2"][0](), dtype="float32")


async def test_tensors_are_made_where_the_engine_computes(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are made under torch's device context, on a CPU without it: both are one computation."""
    plain = await sample(start(build("Llama")), *((prompt, Sampling(8, seed=3)) for prompt in PROMPTS))
    for module in ("network", "engine"):
        monkeypatch.setattr(f"quintain.rollout.engines.embedded.{module}.placed", lambda device: device)
    again = await sample(start(build("Llama")), *((prompt, Sampling(8, seed=3)) for prompt in PROMPTS))
    assert [one.output_ids.tolist() for one in plain] == [one.output_ids.tolist() for one in again]


async def test_a_model_is_read_from_its_folder(start: Any, tmp_path: Path) -> None:
    model = build("Qwen3", head_dim=16)
    model.save_pretrained(tmp_path)
    (done,) = await sample(start(tmp_path), (PROMPTS[1], Sampling(10, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[1], done, Sampling(1)), atol=1e-5)


# --- trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("something in a kernel"), FailureKind.CRASHED),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            FailureKind.RESOURCE,
        ),
        (MemoryError(), FailureKind.RESOURCE),
    ],
)
@pytest.mark.parametrize("where", ["prefill", "step"])
async def test_what_breaks_while_computing_fails_those_it_was_for_and_no_more(
    where: str, error: Exception, kind: FailureKind, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(build("Llama"))
    expected = await sample(engine, *((prompt, Sampling(6, seed=1)) for prompt in PROMPTS))
    real, calls = getattr(LlamaNetwork, where), itertools.count()

    def breaking(self: LlamaNetwork, *given: Any) -> Any:
        if next(calls) == 0:
            raise error
        return real(self, *given)

    monkeypatch.setattr(LlamaNetwork, where, breaking)
    failed = await failure(engine.generate(PROMPTS[0], Sampling(6, seed=1), session="s"))
    assert (failed.kind, failed.stage) == (kind, Stage.GENERATE)
    again = await sample(engine, *((prompt, Sampling(6, seed=1)) for prompt in PROMPTS))
    assert [one.output_ids.tolist() for one in again] == [one.output_ids.tolist() for one in expected]


async def test_a_prefill_that_breaks_does_not_touch_who_is_running(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(build("Llama"))
    (expected,) = await sample(engine, (PROMPTS[0], Sampling(200, seed=1)))
    running = asyncio.ensure_future(sample(engine, (PROMPTS[0], Sampling(200, seed=1))))
    while engine.stats().output_tokens < 205:  # noqa: ASYNC110 - its counters are all an engine says of its progress
        await asyncio.sleep(0)

    def breaking(self: LlamaNetwork, *given: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(LlamaNetwork, "prefill", breaking)
    assert (await failure(engine.generate(PROMPTS[1], Sampling(5), session="s"))).kind is FailureKind.CRASHED
    assert not running.done()
    assert (await running)[0].output_ids.tolist() == expected.output_ids.tolist()


async def test_diverged_weights_fail_and_sound_ones_heal(start: Any, tmp_path: Path) -> None:
    model = build("Llama")
    engine = start(build("Llama"))
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in model.state_dict().items()}
    await engine.load(Weights(publish(tmp_path / "broken", broken), version=1))
    failed = await failure(engine.generate(PROMPTS[1], Sampling(5), session="s"))
    assert (failed.kind, failed.stage) == (FailureKind.INVALID, Stage.GENERATE)
    assert "not finite" in failed.message
    await engine.load(Weights(publish(tmp_path / "sound", model.state_dict()), version=2))
    (done,) = await sample(engine, (PROMPTS[0], Sampling(40, seed=1)))
    np.testing.assert_allclose(done.logprobs, plain_logprobs(model, PROMPTS[0], done, Sampling(1)), atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test does
async def test_an_engine_whose_thread_dies_leaves_nobody_waiting(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(build("Llama"))

    def dying(self: LlamaNetwork, *given: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr(LlamaNetwork, "step", dying)
    failed = await failure(sample(engine, *((prompt, Sampling(6)) for prompt in PROMPTS)))
    assert (failed.kind, failed.retryable) == (FailureKind.CRASHED, True)
    assert (await failure(engine.generate(PROMPTS[0], Sampling(6), session="s"))).kind is FailureKind.CRASHED
    assert (await failure(engine.load(Weights(Path(), 1)))).kind is FailureKind.CRASHED
    await engine.close()


async def test_one_engine_serves_several_event_loops(start: Any) -> None:
    engine = start(build("Llama"))
    (here,) = await sample(engine, (PROMPTS[0], Sampling(5, seed=1)))
    (there,) = await asyncio.to_thread(lambda: asyncio.run(sample(engine, (PROMPTS[0], Sampling(5, seed=1)))))
    assert here.output_ids.tolist() == there.output_ids.tolist()
