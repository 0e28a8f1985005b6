"""The policy: what is loaded, refused, published and saved, for every shape of model that transformers converts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from quintain.config import LoraConfig, ModelConfig
from quintain.failure import QuintainError
from quintain.rollout.engines.embedded.checkpoint import read_weights
from quintain.rollout.engines.embedded.network import open_network
from quintain.trainers.model.policy import ADAPTER, check_saved, load_policy, published, restore_policy, save_policy
from quintain.trainers.publishing.weights import FILES, WeightStore

from .made_segments import WORDS, tiny

MOE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
KINDS: dict[str, dict[str, Any]] = {"llama": {"tie_word_embeddings": True}, "gpt2": {}, "gemma2": {"head_dim": 8}} | MOE
DROPOUT: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    "starcoder2": {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "opt": {"dropout": 0.1, "layerdrop": 0.5, "word_embed_proj_dim": 32},
    "mixtral": {**MOE["mixtral"], "attention_dropout": 0.1, "router_jitter_noise": 0.1},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "resid_pdrop": 0.1,
        "attn_config": {"attn_pdrop": 0.1, "kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.1},
    },
}  # fmt: skip
IDS = torch.randint(3, WORDS, (2, 12), generator=torch.Generator().manual_seed(0))


class Words:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, folder: Path) -> None:
        """Nothing to write."""


def policy(folder: Path, kind: str, lora: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A policy of `kind` from a folder of its own; an adapter is far from zero."""
    tiny(kind, **changes).save_pretrained(folder)
    adapter = None if lora is None else LoraConfig(**{"r": 4, **lora})
    model, _ = load_policy(ModelConfig(path=str(folder), lora=adapter), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


def changed(model: Any) -> None:
    """Every trained weight takes a step."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.05)


LORA = {"target_modules": ["q_proj", "v_proj"]}
SHAPES = [(kind, None) for kind in KINDS] + [("llama", LORA), ("qwen3_moe", LORA), ("mixtral", LORA)]
SHAPES += [("gpt2", {"target_modules": ["c_attn"]}), ("llama", {"target_modules": "all-linear"})]


@pytest.mark.parametrize(("kind", "lora"), SHAPES, ids=str)
def test_what_is_saved_and_published_is_the_policy_and_comes_back_as_it(tmp_path: Path, kind: str, lora: Any) -> None:
    model = policy(tmp_path / "base", kind, lora, **KINDS[kind])
    changed(model)
    said = logits(model)
    save_policy(model, Words(), tmp_path / "saved")
    check_saved(model, tmp_path / "saved")

    again, told = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(again), said, rtol=1e-4, atol=1e-4)

    on_disk = load_file(tmp_path / "saved" / "model.safetensors")
    given = dict(published(model))
    assert given.keys() == on_disk.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
    for name, value in given.items():
        torch.testing.assert_close(value, on_disk[name], rtol=0, atol=1e-6)

    other = policy(tmp_path / "base", kind, lora, **KINDS[kind])
    assert float((logits(other) - said).abs().max()) > 0.01
    restore_policy(other, tmp_path / "saved")
    assert torch.equal(logits(other), said)


@pytest.mark.parametrize(("kind", "lora"), [*SHAPES, ("gpt_oss", None)], ids=str)
def test_the_embedded_engine_samples_with_what_is_published(tmp_path: Path, kind: str, lora: Any) -> None:
    changes = KINDS.get(kind, {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8})
    model = policy(tmp_path / "base", kind, lora, **changes)
    network = open_network(tmp_path / "base", "float32", 64, torch.device("cpu")).network
    store = WeightStore(tmp_path, torch.float32, need_bytes=0, shared=tmp_path / "none")
    for version in range(FILES + 2):
        changed(model)
        written = store.write(published(model), version)
        with torch.inference_mode():
            network.use(network.build(read_weights(written.path, network.layout)))
            said = torch.stack(network.score(IDS, [IDS.shape[1]] * len(IDS)))
        wanted = logits(model).log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
        torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
    store.close()


def test_an_adapter_is_saved_as_one_that_peft_loads(tmp_path: Path) -> None:
    model = policy(tmp_path / "base", "llama", LORA)
    changed(model)
    save_policy(model, Words(), tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "saved" / ADAPTER))
    assert torch.equal(logits(adapted), logits(model))


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_model_saved_in_several_files_comes_back(tmp_path: Path, lora: Any) -> None:
    model = policy(tmp_path / "base", "qwen3_moe", lora, **MOE["qwen3_moe"])
    changed(model)
    save_policy(model, Words(), tmp_path / "saved")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 2
    check_saved(model, tmp_path / "saved")
    other = policy(tmp_path / "base", "qwen3_moe", lora, **MOE["qwen3_moe"])
    restore_policy(other, tmp_path / "saved")
    assert torch.equal(logits(other), logits(model))


def test_a_folder_that_does_not_load_back_equal_is_found_out(tmp_path: Path) -> None:
    model = policy(tmp_path / "base", "llama")
    save_policy(model, Words(), tmp_path / "saved")
    changed(model)
    with pytest.raises(QuintainError, match=r"LlamaForCausalLM does not load back as it was saved: .* differs"):
        check_saved(model, tmp_path / "saved")


def test_loading_back_draws_no_random_numbers(tmp_path: Path) -> None:
    model = policy(tmp_path / "base", "qwen3_moe", **MOE["qwen3_moe"])
    save_policy(model, Words(), tmp_path / "saved")
    before = torch.get_rng_state()
    check_saved(model, tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)


REFUSED: dict[str, tuple[str, dict[str, Any], str | list[str], str]] = {
    "fused experts": (
        "qwen3_moe", MOE["qwen3_moe"], "all-linear",
        r"'all-linear' reaches model\.layers\.0\.mlp\.experts, a Qwen3MoeExperts.*\(k_proj, o_proj, q_proj, v_proj\)",
    ),
    "a router": ("mixtral", MOE["mixtral"], ["gate"], r"reaches model\.layers\.0\.mlp\.gate, a MixtralTopKRouter"),
    "a tied embedding": (
        "llama", {"tie_word_embeddings": True}, ["embed_tokens", "q_proj"],
        r"reaches model\.embed_tokens, whose weight another layer shares",
    ),
    "a tied head": (
        "llama", {"tie_word_embeddings": True}, ["lm_head"], "reaches lm_head, whose weight another layer shares",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "targets", "says"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_on_what_it_cannot_be_merged_into_is_refused_at_load(
    tmp_path: Path, kind: str, changes: dict[str, Any], targets: Any, says: str
) -> None:
    with pytest.raises(QuintainError, match=rf"^model\.lora\.target_modules: .*{says}"):
        policy(tmp_path, kind, {"target_modules": targets}, **changes)


def test_an_adapter_on_an_embedding_of_its_own_is_published_and_comes_back(tmp_path: Path) -> None:
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    model = policy(tmp_path / "base", "llama", lora)
    changed(model)
    save_policy(model, Words(), tmp_path / "saved")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model), rtol=1e-4, atol=1e-4
    )
    other = policy(tmp_path / "base", "llama", lora)
    restore_policy(other, tmp_path / "saved")
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(("kind", "chances"), DROPOUT.items(), ids=DROPOUT)
def test_a_policy_is_the_same_function_in_training_as_in_sampling_and_says_so(
    tmp_path: Path, kind: str, chances: dict[str, Any]
) -> None:
    tiny(kind, **chances).save_pretrained(tmp_path)
    model, notes = load_policy(ModelConfig(path=str(tmp_path)), seed=0)
    sampling = logits(model)
    training = [model.train()(input_ids=IDS, use_cache=False).logits for _ in range(3)]
    assert all(torch.equal(found, sampling) for found in training)
    (note,) = notes
    named = [
        name for name, value in chances.items() if "drop" in name or "jitter" in name if not isinstance(value, dict)
    ]
    assert all(f"{name} {chances[name]:g}" in note for name in named)
    assert note.endswith(": off, so that what is trained is what samples")


def test_a_model_that_draws_random_numbers_of_its_own_accord_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    tiny("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(LlamaMLP, "forward", lambda mlp, x: torch.dropout(plain(mlp, x), 0.5, mlp.training))
    with pytest.raises(QuintainError, match="LlamaForCausalLM draws random numbers in training"):
        load_policy(ModelConfig(path=str(tmp_path)), seed=0)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_a_model_without_sdpa_runs_eager_attention_and_says_so(tmp_path: Path, kind: str) -> None:
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "gpt_oss" else {}
    tiny(kind, head_dim=8, **changes).save_pretrained(tmp_path)
    model, notes = load_policy(ModelConfig(path=str(tmp_path)), seed=0)
    assert model.config._attn_implementation == "eager"
    assert f"attention: eager, because {type(model).__name__} has no SDPA" in notes
