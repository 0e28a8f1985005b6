"""A Llama with random weights from a seed, small enough to make in every test; embeddings are tied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def tiny_llama(seed: int, *, words: int, length: int, **more: Any) -> LlamaForCausalLM:
    """One of `words` words and at most `length` positions, in eval mode; `more` is of `LlamaConfig`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"vocab_size": words, "max_position_embeddings": length, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**settings, **sizes, **heads, **more})).eval()
