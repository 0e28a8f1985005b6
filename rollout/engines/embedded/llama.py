"""The Llama family (Llama, Mistral, Qwen2, Qwen3) in a third of the operations its modules take.

Decoding a small model is bound by the count of operations and by how often weights are copied, not by arithmetic.
Here q, k and v are one packed product, gate and up another, and a layer is about twenty operations.

Numerics follow a trainer under bf16 autocast rather than a model cast to bf16: products are bf16, while the residual
stream, the norms and the rotary embedding are float32, so that sampler and trainer disagree as little as they can.
In float32 everything is float32.

Shapes: N tokens or rows, E model size, I inner size, Q query heads, H key/value heads of size D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quintain.rollout.engines.embedded.kv import KVCache
from quintain.rollout.engines.embedded.modules import layout_of
from quintain.rollout.engines.embedded.network import Prefilled, flat_pairs, target_logprobs
from quintain.rollout.engines.embedded.packing import Linear, pack

_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"} | {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [N, Q, D], keys [N, H, D], values [N, H, D]) -> [N, Q * D]."""


_Cache = list[tuple[Tensor, Tensor]]  # keys and values by layer

_WORTH_SHARING = 128  # tokens saved that pay for going through the layers twice


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer's weights; `heads_norm` [Q + H, D] is of Qwen3."""

    attention_norm: Tensor
    qkv: Linear
    heads_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class _Weights:
    embedding: Tensor
    blocks: tuple[_Block, ...]
    norm: Tensor
    head: Linear


class LlamaNetwork:
    """Computes what `model` does; keeps nothing of it but its rotary embedding."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        self._dtype = dtype
        self._layers = config.num_hidden_layers
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._inner = config.intermediate_size
        self._eps = config.rms_norm_eps
        self._rotary = type(model.model.rotary_emb)(config=config)  # its own: a cast model has rounded frequencies
        self.layout = layout_of(model)
        self._weights = self.build(model.state_dict())
        self.words = len(self._weights.embedding)

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether `model` is of the family, without extras that this file does not know."""
        config = model.config
        if _TYPES.get(config.model_type) != type(model).__name__ or config.hidden_act != "silu":
            return False
        return set(model.state_dict()) <= _known_names(config.num_hidden_layers)

    def prefill(self, ids: Tensor, lengths: Sequence[int]) -> Prefilled:
        """Read the prompts `ids` [n, S] of `lengths`."""
        shared = _shared_tokens(ids, lengths)
        past = self._read(ids[:1, :shared])[1] if shared else None
        hidden, cache = self._read(ids[:, shared:], past)
        width = ids.shape[1] - shared
        ends = torch.arange(len(lengths)) * width + torch.tensor(lengths) - shared - 1
        return Prefilled(self._weights.head(hidden[ends]), [keys for keys, _ in cache], [values for _, values in cache])

    def step(self, ids: Tensor, slots: KVCache) -> Tensor:
        """Read one more token `ids` [B] in each of the padded rows of `slots`; the logits after it [B, V]."""
        mask = slots.begin_step()
        rows, tokens, heads, size = len(ids), slots.tokens, self._kv_heads, self._head_size
        mask = mask.expand(rows, heads, 1, tokens).reshape(rows * heads, 1, tokens)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            all_keys, all_values = slots.write(layer, keys, values)
            scores = torch.baddbmm(
                mask,
                queries.reshape(rows * heads, -1, size),
                all_keys.view(rows * heads, tokens, size).transpose(1, 2),
                alpha=size**-0.5,
            )
            return torch.bmm(scores.softmax(-1), all_values.view(rows * heads, tokens, size)).view(rows, -1)

        hidden = self._forward(ids, torch.tensor(slots.positions()), attend)
        slots.end_step()
        return self._weights.head(hidden)

    def score(self, ids: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Log-probabilities of the tokens of each row of `ids` [n, S] given those before it: [length - 1] each."""
        at, targets = flat_pairs(ids, lengths)
        flat = target_logprobs(self._read(ids)[0][at], targets, self._weights.head)
        return list(flat.split([max(length - 1, 0) for length in lengths]))

    def build(self, tensors: Mapping[str, Tensor]) -> _Weights:
        """Pack `tensors`; embeddings and norms are not rounded to the engine's type, as they are not in a trainer.

        Everything is copied: `tensors` may be views of a file, or another's parameters.
        """

        def norm(name: str) -> Tensor:
            return tensors[f"{name}.weight"].to(torch.float32, copy=True)

        def linear(*names: str) -> Linear:
            weights = [tensors[f"{name}.weight"].to(self._dtype) for name in names]
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            biases = [tensors[f"{name}.bias"] for name in names if f"{name}.bias" in tensors]
            return pack(weight, torch.cat(biases).to(self._dtype) if biases else None)

        def block(index: int) -> _Block:
            at = f"model.layers.{index}"
            return _Block(
                attention_norm=norm(f"{at}.input_layernorm"),
                qkv=linear(*(f"{at}.self_attn.{part}_proj" for part in "qkv")),
                heads_norm=self._heads_norm(tensors, f"{at}.self_attn"),
                out=linear(f"{at}.self_attn.o_proj"),
                mlp_norm=norm(f"{at}.post_attention_layernorm"),
                gate_up=linear(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
                down=linear(f"{at}.mlp.down_proj"),
            )

        return _Weights(
            embedding=tensors["model.embed_tokens.weight"].clone(),
            blocks=tuple(block(index) for index in range(self._layers)),
            norm=norm("model.norm"),
            head=linear("lm_head"),
        )

    def use(self, built: _Weights) -> None:
        """Swap in what `build` prepared."""
        self._weights = built

    def _heads_norm(self, tensors: Mapping[str, Tensor], at: str) -> Tensor | None:
        if f"{at}.q_norm.weight" not in tensors:
            return None
        query, key = (tensors[f"{at}.{part}_norm.weight"].float() for part in "qk")
        return torch.cat([query.expand(self._heads, -1), key.expand(self._kv_heads, -1)])

    def _read(self, ids: Tensor, past: _Cache | None = None) -> tuple[Tensor, _Cache]:
        """Hidden states [n * S, E] of rows `ids` [n, S], and keys and values [n, H, P + S, D] by layer.

        The rows follow `past`, P tokens that all of them share [1, H, P, D]. Padding is on the right, where a causal
        mask hides it from every real token.
        """
        count, tokens = ids.shape
        before = past[0][0].shape[2] if past else 0
        mask = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before) if past else None
        cache: _Cache = []

        def attend(layer: int, *parts: Tensor) -> Tensor:
            query, key, value = (x.view(count, tokens, -1, self._head_size).transpose(1, 2) for x in parts)
            if past:
                key, value = (
                    torch.cat([old.expand(count, -1, -1, -1), new], 2)
                    for old, new in zip(past[layer], (key, value), strict=True)
                )
            cache.append((key, value))
            seen = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
            return seen.transpose(1, 2).reshape(count * tokens, -1)

        positions = torch.arange(before, before + tokens).repeat(count)
        return self._forward(ids.flatten(), positions, attend), cache

    def _forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The hidden states [N, E] after the last norm of tokens `ids` [N] at `positions` [N]."""
        weights, half = self._weights, self._head_size // 2
        stream = functional.embedding(ids, weights.embedding).float()
        cos, sin = (x[0, :, None] for x in self._rotary(stream[None], positions[None]))
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # the sign of the rotated half, once for all layers
        rotated = self._heads + self._kv_heads
        for index, block in enumerate(weights.blocks):
            hidden = self._norm(stream, block.attention_norm).to(self._dtype)
            heads = block.qkv(hidden).view(len(ids), -1, self._head_size)
            turned = heads[:, :rotated].float()
            if block.heads_norm is not None:
                turned = self._norm(turned, block.heads_norm)
            turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin).to(self._dtype)
            seen = attend(index, turned[:, : self._heads], turned[:, self._heads :], heads[:, rotated:])
            stream += block.out(seen)
            hidden = self._norm(stream, block.mlp_norm).to(self._dtype)
            both = block.gate_up(hidden)
            stream += block.down(functional.silu(both[:, : self._inner]).mul_(both[:, self._inner :]))
        return self._norm(stream, weights.norm).to(self._dtype)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps)
        return (x * scale).mul_(weight)


def _shared_tokens(ids: Tensor, lengths: Sequence[int]) -> int:
    """How many leading tokens of `ids` [n, S] all rows share, short of a whole row; 0 if too few to be worth it."""
    same = (ids == ids[0]).all(0)[: min(lengths) - 1]
    shared = len(same) if bool(same.all()) else int(same.int().argmin())
    return shared if shared * (len(ids) - 1) >= _WORTH_SHARING else 0


def _known_names(layers: int) -> set[str]:
    """Every tensor a model of the family may have."""
    linears = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    norms = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
    inside = [f"{name}.{kind}" for name in linears for kind in ("weight", "bias")]
    inside += [f"{name}.weight" for name in norms]
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    return outside | {f"model.layers.{index}.{name}" for index in range(layers) for name in inside}
