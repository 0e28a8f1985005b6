"""Log-probabilities of a micro-batch's policy tokens under a transformers causal language model.

The decoder runs over the micro-batch's rows; its hidden states at the positions that predict something, and no
others, go through the LM head in chunks. PEFT models run with whatever adapters are on at the time.

Invariants: the results are those of the plain model on each segment alone, to rounding, in every layout; logits are
divided by the temperature; nothing here is particular to an algorithm.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintain.rollout.weights.canary import TOLERANCE
from quintain.trainers.batches.batch import PARITY_TOKENS, MicroBatch, micro_batches
from quintain.trainers.model import attention
from quintain.trainers.model.lm_head import LMHead, chunked_logprobs
from quintain.trainers.model.policy import VALUE_HEAD
from quintain.trainers.model.precision import keep_exact
from quintain.trainers.rows import unsampled
from quintain.trajectory import Segment


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """Of T policy tokens, in (segment, position) order: logp [T], entropy [T] in nats and, without a gradient, the
    highest log-probability there, best [T], and log_mass [T], log Σ p².

    value [T]: of a model with a value head, what it says before each token; logp is 0 where it has no LM head.
    divergence [T]: how far the distribution is from a teacher's, with a gradient.
    balance []: the loss that keeps the model's experts equally used, with a gradient, where it is asked for.
    """

    logp: Tensor
    entropy: Tensor | None
    best: Tensor | None = None
    log_mass: Tensor | None = None
    value: Tensor | None = None
    divergence: Tensor | None = None
    balance: Tensor | None = None


class ModelForward(nn.Module):
    """A model's forward pass as one module, so that Accelerate, DDP and FSDP wrap exactly what is differentiated.

    On a CPU a model that uses SDPA is switched to block attention (see `attention`), which is SDPA wherever it is
    given no blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        base = plain_model(model)
        if base.device.type == "cpu":
            keep_exact(base)
            if base.config._attn_implementation == "sdpa" and base._can_set_attn_implementation():
                attention.install(base)

    @property
    def parity_tokens(self) -> int | None:
        """What `micro_batches` should weigh the length of rows with."""
        return None if in_blocks(plain_model(self.model)) else PARITY_TOKENS


class PolicyForward(ModelForward):
    """What a causal language model says of tokens. Raises ValueError for models whose logits are not an LM head on a
    decoder's hidden states."""

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        entropy: bool = True,
        mass: bool = False,
        noise: float | None = None,
        balance: bool = False,
    ) -> None:
        base = plain_model(model)
        if balance and not routes(base):
            raise ValueError(
                f"trainer.router_aux_loss_coef: {type(base).__name__} has no experts whose use could be balanced: drop"
                " it"
            )
        _decoder(base), _head(base)
        super().__init__(model)
        self.temperature, self.entropy, self.mass, self.noise = temperature, entropy, mass, noise
        self.balance = balance

    def forward(
        self,
        batch: MicroBatch,
        temperature: float | None = None,
        states: Tensor | None = None,
    ) -> TokenLogprobs:
        """`token_logprobs` with this module's settings, the temperature among them unless given."""
        return token_logprobs(
            self.model,
            batch,
            temperature=self.temperature if temperature is None else temperature,
            entropy=self.entropy,
            mass=self.mass,
            noise=self.noise,
            balance=self.balance and torch.is_grad_enabled(),
            states=states,
        )


def token_logprobs(
    model: nn.Module,
    batch: MicroBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    mass: bool = False,
    noise: float | None = None,
    balance: bool = False,
    states: Tensor | None = None,
) -> TokenLogprobs:
    """logp [T], and entropy and log_mass [T] if asked for, of the policy tokens of `batch`, float32 at least.

    noise: NEFTune's alpha (arXiv 2310.05914), of a model that is in training. balance: whether to give that, of a model
    that `routes`. states: what `predicting_states` gave,
    where that is known.
    Differentiable in the model's parameters. `supports_tree` says whether batches other than padded ones are allowed.
    """
    base = plain_model(model)
    batch = batch.to(base.device)
    weight, bias, scale, softcap = head_of(base)
    balanced = None
    if getattr(base.get_input_embeddings(), "sparse", False):
        weight = _Last.apply(weight)  # type: ignore[no-untyped-call]
    if states is None:
        decoded = _decoded(base, batch, noise=noise, **({"output_router_logits": True} if balance else {}))
        states = _at_predictors(decoded, batch)
        balanced = _balance(base, decoded.router_logits, batch) if balance else None
    logp, best, entropies, masses = chunked_logprobs(
        states,
        weight,
        batch.targets,
        rows=batch.predictor,
        bias=bias,
        temperature=temperature,
        scale=scale,
        softcap=softcap,
        entropy=entropy,
        mass=mass,
    )
    value = None
    if isinstance(head := getattr(base, VALUE_HEAD, None), nn.Linear):
        wide = torch.promote_types(states.dtype, torch.float32)
        value = nn.functional.linear(states.to(wide), head.weight.to(wide))[batch.predictor, 0]
    return TokenLogprobs(logp, entropies, best, masses, value, balance=balanced)


class _Last(torch.autograd.Function):
    """A weight [V, H] whose dense gradient comes after those of all that is computed from here on: by then the sparse
    one of an embedding that is the same weight is there, and is added to it in its memory. The other way round torch
    makes a third tensor."""

    @staticmethod
    def forward(_: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def predicting_states(base: Any, batch: MicroBatch) -> Tensor:
    """The decoder's last hidden states [U, H] at the batch's predictors."""
    return _at_predictors(_decoded(base, batch), batch)


def _at_predictors(decoded: Any, batch: MicroBatch) -> Tensor:
    states: Tensor = decoded.last_hidden_state
    return states.flatten(0, 1)[batch.predictors]


def routes(base: Any) -> bool:
    """Whether the model sends tokens to experts of its own choice, and says so."""
    return hasattr(base.config.get_text_config(), "output_router_logits")


def _balance(base: Any, logits: tuple[Tensor, ...], batch: MicroBatch) -> Tensor:
    """[]: the model's own loss on how its experts share the tokens, padding excluded (arXiv 2101.03961, eq. 4)."""
    real = torch.zeros(batch.input_ids.numel(), device=batch.input_ids.device)
    for start, stop in batch.spans:
        real[start:stop] = 1
    loss_of = sys.modules[type(base).__module__].load_balancing_loss_func
    loss: Tensor = loss_of(logits, base.num_experts, base.num_experts_per_tok, real)
    return loss


def _decoded(base: Any, batch: MicroBatch, *, noise: float | None = None, **more: Any) -> Any:
    """What the decoder gives for the batch's rows."""
    where: dict[str, Any] = {"input_ids": batch.input_ids}
    if noise and base.training:
        where = {"inputs_embeds": _noisy(base.get_input_embeddings()(batch.input_ids), batch, noise)}
    if batch.exits is not None:  # rows that are not plain sequences
        where["position_ids"] = batch.position_ids
        if in_blocks(base):
            exits = (
                batch.exits
                + torch.arange(0, batch.exits.numel(), batch.exits.shape[1], device=batch.exits.device)[:, None]
            )
            blocks = attention.plan_blocks(exits.flatten().cpu().numpy(), batch.spans)
            where |= attention.block_arguments(blocks, base.device)
        else:
            where["attention_mask"] = batch.attention_mask()
    return _decoder(base)(use_cache=False, **where, **more)


def _noisy(embeddings: Tensor, batch: MicroBatch, alpha: float) -> Tensor:
    """Embeddings [B, L, H] with noise of at most alpha / √(tokens of the tree · H) on each number."""
    scale = torch.zeros(embeddings.shape[:2].numel(), device=embeddings.device)
    for start, stop in batch.spans:
        scale[start:stop] = alpha / ((stop - start) * embeddings.shape[-1]) ** 0.5
    noise = torch.empty_like(embeddings).uniform_(-1, 1)
    return embeddings + noise * scale.view(*embeddings.shape[:2], 1).to(embeddings.dtype)


def supports_tree(model: nn.Module) -> str | None:
    """Why `model` cannot run token trees or packed rows; None where it can.

    What its configuration shows is asked first; then a small tree is run and compared with padded rows, in `model`'s
    present precision, without a gradient. Raises ValueError where even padded rows do not give the model's own
    log-probabilities: something is done to its logits that `token_logprobs` does not know.
    """
    base = plain_model(model)
    training = base.training
    base.eval()
    try:
        with torch.no_grad():
            segments = _probe(base.config.get_text_config().vocab_size)
            padded = micro_batches(segments, [0] * len(segments), layout="padded", max_tokens=PARITY_TOKENS)[0]
            tree = micro_batches(segments, [0] * len(segments), layout="tree", max_tokens=PARITY_TOKENS)[0]
            if base.get_output_embeddings() is not None:  # a classifier has no words to compare
                _check_logits(base, segments, token_logprobs(model, padded).logp.cpu())
            if (reason := _configured_against(base)) is not None:
                return reason
            return _differs(base, padded, tree)
    finally:
        base.train(training)


def _probe(vocabulary: int) -> list[Segment]:
    """Three rows that fork at two depths, so that ancestors, siblings and positions all matter."""
    ids = np.random.default_rng(0).integers(0, vocabulary, 24).astype(np.int32)
    rows = [ids[:16], np.concatenate([ids[:6], ids[16:]]), np.concatenate([ids[:11], ids[18:]])]
    return [unsampled(row, np.arange(len(row)) >= 6) for row in rows]


def _check_logits(base: Any, segments: list[Segment], logp: Tensor) -> None:
    """ValueError unless `logp` is what the model's own logits give."""
    own = []
    for segment in segments:
        ids = torch.from_numpy(segment.ids).long()
        scores = base(input_ids=ids[None].to(base.device), use_cache=False).logits[0].float().log_softmax(-1).cpu()
        positions = torch.from_numpy(segment.mask).nonzero()[:, 0]
        own.append(scores[positions - 1, ids[positions]])
    apart = float((torch.cat(own) - logp).abs().max())
    if not apart <= TOLERANCE[str(base.dtype).removeprefix("torch.")]:
        raise ValueError(
            f"{type(base).__name__} does more to its logits than an LM head, a scale and a soft cap: its own "
            f"log-probabilities differ by {apart:.3g} from those computed here, so it cannot be trained"
        )


def _configured_against(base: Any) -> str | None:
    """The reason that the configuration gives, in words."""
    config = base.config.get_text_config()
    if getattr(base, "_is_stateful", False):
        return f"the layers of {type(base).__name__} carry a state from token to token"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"its layers are not plain causal attention but {', '.join(sorted(kinds))}"
    if not hasattr(config, "layer_types") and getattr(config, "sliding_window", None) is not None:
        return f"its attention slides over {config.sliding_window} tokens"
    if base.config._attn_implementation not in ("sdpa", attention.NAME):
        return f"its attention implementation is '{base.config._attn_implementation}', not 'sdpa'"
    return None


def _differs(base: Any, padded: MicroBatch, tree: MicroBatch) -> str | None:
    """Whether the tree's hidden states are not those of padded rows, in words."""
    try:
        shared = predicting_states(base, tree)[tree.predictor]
    except (
        Exception
    ) as error:  # other people's models, run in a way they may not foresee: whatever breaks is the answer
        return f"{type(base).__name__} cannot run a token tree ({type(error).__name__}: {str(error).splitlines()[0]})"
    alone = predicting_states(base, padded)[padded.predictor]
    apart = float((shared - alone).float().norm() / alone.float().norm())
    if apart <= TOLERANCE[str(base.dtype).removeprefix("torch.")]:
        return None
    return f"{type(base).__name__} computes something else from a token tree than from its rows (off by {apart:.2g})"


def plain_model(model: nn.Module) -> Any:
    """The transformers model inside DDP and PEFT wrappers. PEFT's layers, inside it, stay."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "get_base_model"):
        if any(config.is_prompt_learning for config in model.peft_config.values()):  # type: ignore[operator]
            raise ValueError("PEFT methods that learn a prompt change what comes before a row: use LoRA")
        model = model.get_base_model()  # type: ignore[operator]
    return model


def in_blocks(base: Any) -> bool:
    """Whether attention runs in blocks; a model that was moved to a GPU since takes masks again."""
    return bool(base.config._attn_implementation == attention.NAME and base.device.type == "cpu")


def _decoder(base: Any) -> nn.Module:
    decoder: nn.Module = base.get_decoder()
    if base.config.is_encoder_decoder or decoder is base:
        raise ValueError(f"{type(base).__name__} is not a decoder with an LM head: load an AutoModelForCausalLM")
    return decoder


def _head(base: Any) -> tuple[Tensor, Tensor | None]:
    """The LM head's weight [V, H] and bias [V]."""
    head = base.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # trained in full next to an adapter (PEFT)
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
    if type(head) is not nn.Linear:
        raise ValueError(
            f"the LM head of {type(base).__name__} is a {type(head).__name__}, not a plain linear layer: leave it out "
            "of the adapter's target_modules, or train it in full with modules_to_save"
        )
    return head.weight, head.bias


def head_of(base: Any) -> LMHead:
    """What makes logits out of hidden states."""
    return LMHead(*_head(base), *_logit_options(base.config))


def _logit_options(config: Any) -> tuple[float, float | None]:
    """(scale, soft cap) of logits: what Cohere, Granite, Falcon-H1 and Gemma do to them after the LM head."""
    text = config.get_text_config()
    scale = (getattr(text, "logit_scale", None) or 1.0) * (getattr(text, "lm_head_multiplier", None) or 1.0)
    return scale / (getattr(text, "logits_scaling", None) or 1.0), getattr(text, "final_logit_softcapping", None)
