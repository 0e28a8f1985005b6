"""The forward pass against plain transformers, one segment at a time: values, entropies and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quintain.trainers.batches.batch import Layout, micro_batches
from quintain.trainers.model import attention
from quintain.trainers.model.forward import PolicyForward, supports_tree, token_logprobs

from .made_segments import SIZES, apart, gradients, plain_logprobs, ragged_step, tiny

torch.set_num_threads(1)

TEMPERATURE = 0.7
SEGMENTS, GROUPS = ragged_step(0)
COUNTS = [int(row.mask.sum()) for row in SEGMENTS]
STARTS = np.cumsum([0, *COUNTS])
UPSTREAM = torch.from_numpy(np.random.default_rng(0).standard_normal(sum(COUNTS))).float()

MODELS: dict[str, Callable[[], Any]] = {
    "llama, grouped queries": lambda: tiny("llama"),
    "llama, tied embeddings": lambda: tiny("llama", tie_word_embeddings=True),
    "qwen2": lambda: tiny("qwen2", tie_word_embeddings=True),
    "qwen3": lambda: tiny("qwen3", head_dim=8),
    "mistral without a window": lambda: tiny("mistral", sliding_window=None),
    "gpt2, learned positions": lambda: tiny("gpt2"),
    "granite, scaled logits": lambda: tiny("granite", logits_scaling=3.0),
    "cohere, scaled logits": lambda: tiny("cohere", logit_scale=0.5),
}
CUTS: list[tuple[Layout, int, int | None]] = [
    ("tree", 10_000, None),
    ("tree", 10_000, 20),
    ("tree", 30, None),
    ("packed", 10_000, None),
    ("packed", 50, 20),
    ("padded", 10_000, None),
    ("padded", 40, None),
]


def expected(model: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(logp [T], entropy [T], gradients of Σ upstream · logp) from the model's own logits."""
    model.zero_grad()
    found = list(plain_logprobs(model, SEGMENTS, TEMPERATURE))
    logp, entropy = torch.cat([a for a, _ in found]), torch.cat([b for _, b in found]).detach()
    (logp * UPSTREAM).sum().backward()
    return logp.detach(), entropy, gradients(model)


def got(policy: Any, layout: Layout, max_tokens: int, parity: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same through micro-batches."""
    policy.zero_grad()
    logp, entropy = torch.full_like(UPSTREAM, torch.nan), torch.full_like(UPSTREAM, torch.nan)
    batches = micro_batches(SEGMENTS, GROUPS, layout=layout, max_tokens=max_tokens, parity_tokens=parity)
    assert (len(batches) > 1) == (max_tokens < 100)
    for batch in batches:
        at = torch.cat([torch.arange(STARTS[i], STARTS[i + 1]) for i in batch.segments])
        out = policy(batch)
        (out.logp * UPSTREAM[at]).sum().backward()
        logp[at], entropy[at] = out.logp.detach(), out.entropy
    return logp, entropy, gradients(policy.model)


def agree(policy: Any, reference: Any, cuts: Any = CUTS) -> None:
    logp, entropy, grads = expected(reference)
    for cut in cuts:
        mine = got(policy, *cut)
        torch.testing.assert_close(mine[0], logp, atol=2e-5, rtol=1e-5, msg=lambda m, cut=cut: f"{cut}: {m}")
        torch.testing.assert_close(mine[1], entropy, atol=2e-5, rtol=1e-5, msg=lambda m, cut=cut: f"{cut}: {m}")
        assert apart(mine[2], grads) <= 1e-5, cut


@pytest.mark.parametrize("kind", ["blocks", "mask"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_layout_and_every_cut_gives_the_plain_models_values_and_gradients(
    make: Callable[[], Any], kind: str
) -> None:
    model = make()
    policy = PolicyForward(model, temperature=TEMPERATURE)
    assert model.config._attn_implementation == attention.NAME
    if kind == "mask":
        model.set_attn_implementation("sdpa")
    assert (policy.parity_tokens is None) == (kind == "blocks")
    agree(policy, model)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], "all-linear"])
def test_lora_adapters_get_the_same_gradients_in_every_layout(targets: Any) -> None:
    import peft

    options = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(tiny("llama", tie_word_embeddings=True), options)
    policy = PolicyForward(model, temperature=TEMPERATURE)
    agree(policy, model)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in model.named_parameters() if "lora_" in name
    }


def test_with_its_adapter_off_a_lora_model_is_the_model_before() -> None:
    import peft

    plain = tiny("llama")
    before = torch.cat([logp for logp, _ in plain_logprobs(plain, SEGMENTS, 1.0)]).detach()
    options = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(plain, options)
    (batch,) = micro_batches(SEGMENTS, GROUPS, layout="tree", max_tokens=10_000)
    policy = PolicyForward(model)
    with torch.no_grad():
        assert float((policy(batch).logp - before).abs().max()) > 0.01
        with model.disable_adapter():
            torch.testing.assert_close(policy(batch).logp, before, atol=2e-5, rtol=1e-5)


def test_an_lm_head_trained_next_to_an_adapter_is_used_and_trained() -> None:
    import peft

    options = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model: Any = peft.get_peft_model(tiny("llama"), options)
    for parameter in model.get_base_model().get_output_embeddings().modules_to_save.parameters():
        torch.nn.init.normal_(parameter)
    policy = PolicyForward(model, temperature=TEMPERATURE)
    agree(policy, model, CUTS[:1])
    with model.disable_adapter():
        agree_values = torch.cat([logp for logp, _ in plain_logprobs(model, SEGMENTS, TEMPERATURE)])
        (batch,) = micro_batches(SEGMENTS, GROUPS, layout="tree", max_tokens=10_000)
        torch.testing.assert_close(policy(batch).logp, agree_values, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["blocks", "mask"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    model = tiny("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = PolicyForward(model, temperature=TEMPERATURE)
    if kind == "mask":
        model.set_attn_implementation("sdpa")
    calls = []
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    (batch,) = micro_batches(SEGMENTS, GROUPS, layout="tree", max_tokens=10_000)
    policy(batch).logp.sum().backward()
    handle.remove()
    assert len(calls) == 2  # once forward, once again in the backward pass
    agree(policy, tiny("llama"), CUTS[:2])


def test_bfloat16_autocast_stays_near_float32_in_every_layout() -> None:
    model = tiny("llama")
    exact, _, _ = expected(model)
    policy = PolicyForward(model, temperature=TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        values = [got(policy, *cut) for cut in CUTS[:1] + CUTS[3:6]]
    for logp, entropy, grads in values:
        assert logp.dtype == entropy.dtype == torch.float32
        assert all(g.dtype == torch.float32 for g in grads.values())
        assert float((logp - exact).abs().mean()) < 0.1


def test_a_bfloat16_model_gives_float32_log_probabilities() -> None:
    model = tiny("llama")
    exact, _, _ = expected(model)
    logp, _, grads = got(PolicyForward(model.bfloat16(), temperature=TEMPERATURE), *CUTS[0])
    assert logp.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 for g in grads.values())
    assert float((logp - exact).abs().mean()) < 0.1


def test_entropies_are_computed_only_when_asked_for() -> None:
    (batch,) = micro_batches(SEGMENTS, GROUPS, layout="tree", max_tokens=10_000)
    policy = PolicyForward(tiny("llama"), entropy=False)
    assert policy(batch).entropy is None
    assert PolicyForward(policy.model)(batch).entropy is not None
    assert token_logprobs(policy.model, batch).entropy is None


def test_a_temperature_given_to_the_call_wins() -> None:
    (batch,) = micro_batches(SEGMENTS, GROUPS, layout="tree", max_tokens=10_000)
    model = tiny("llama")
    cold, hot = PolicyForward(model, temperature=0.5), PolicyForward(model, temperature=2.0)
    torch.testing.assert_close(cold(batch, temperature=2.0).logp, hot(batch).logp)
    assert float((cold(batch).logp - hot(batch).logp).detach().abs().max()) > 0.1


def test_a_model_made_ready_for_trees_still_runs_padded_batches_and_generates_as_before() -> None:
    model = tiny("llama").eval()
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding, as generation has it
    options: Any = {"max_new_tokens": 5, "do_sample": False}
    before = model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, **options)
    PolicyForward(model)
    after = model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, **options)
    torch.testing.assert_close(after[0][mask.bool()], before[0][mask.bool()])
    assert torch.equal(after[1], before[1])


def test_the_attention_we_install_is_not_written_into_a_saved_model(tmp_path: Any) -> None:
    model = tiny("llama")
    PolicyForward(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


MAMBA: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
EXPERTS: dict[str, Any] = {"num_experts": 16, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "sliding window": (lambda: tiny("mistral", sliding_window=8), "slides over 8 tokens"),
    "mixed layers": (lambda: tiny("gemma3_text", head_dim=8), "not plain causal attention but sliding_attention"),
    "state space": (lambda: unsized("mamba", **MAMBA), "carry a state"),
    "hybrid": (lambda: tiny("qwen3_next", head_dim=8, **EXPERTS), "carry a state"),
    "eager attention": (lambda: tiny("llama", attn_implementation="eager"), "is 'eager', not 'sdpa'"),
    "alibi": (lambda: unsized("falcon", alibi=True, num_attention_heads=4, **MAMBA), "cannot run a token tree"),
}


def unsized(kind: str, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_of_plain_causal_attention_support_trees(make: Callable[[], Any]) -> None:
    model = make()
    assert supports_tree(model) is None  # with a mask
    PolicyForward(model)
    assert supports_tree(model) is None  # in blocks
    assert model.training


@pytest.mark.parametrize(("make", "reason"), UNFIT.values(), ids=UNFIT)
def test_models_of_other_layers_are_told_apart_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    model = make()
    PolicyForward(model)
    assert reason in (supports_tree(model) or "")


@pytest.mark.parametrize("name", ["sliding window", "state space", "hybrid", "eager attention", "alibi"])
def test_padded_rows_are_exact_for_models_that_cannot_run_trees(name: str) -> None:
    model = UNFIT[name][0]().eval()
    agree(PolicyForward(model, temperature=TEMPERATURE), model, [CUTS[5]])


def test_positions_that_a_model_ignores_are_found_out_by_running_it() -> None:
    model = tiny("llama")
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotary(x, torch.arange(x.shape[1])[None])
    assert "computes something else from a token tree" in (supports_tree(model) or "")


def test_logits_that_are_changed_in_an_unknown_way_are_an_error_in_any_layout() -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, out: out * 2)
    with pytest.raises(ValueError, match="does more to its logits"):
        supports_tree(model)


def test_a_model_without_an_lm_head_of_its_own_is_refused() -> None:
    from transformers import AutoModel, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

    sizes: Any = {"vocab_size": 61, "d_model": 32, "num_layers": 1, "d_ff": 32, "num_heads": 2, "d_kv": 16}
    for model in (AutoModel.from_config(LlamaConfig(**SIZES)), AutoModelForSeq2SeqLM.from_config(T5Config(**sizes))):
        with pytest.raises(ValueError, match="AutoModelForCausalLM"):
            PolicyForward(model)


def test_adapters_that_change_the_lm_head_or_the_prompt_are_refused() -> None:
    import peft

    adapted = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="leave it out"):
        PolicyForward(adapted)
    options: Any = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="use LoRA"):
        PolicyForward(peft.get_peft_model(tiny("llama"), options))
