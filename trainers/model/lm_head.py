"""Log-probabilities and entropies of tokens straight from hidden states: the vocabulary is never materialised.

The logits exist one block (some rows × some words) at a time, in the forward pass and again in the backward pass.
Blocks run over words outermost: each piece of the weight is read and cast once per pass, and its gradient is
finished before the next piece is touched.

Invariants:
- softmax sums are float32 (or float64 for float64 inputs) whatever the type of the matrix products;
- a token whose incoming gradient is zero costs nothing in the backward pass;
- several tokens may be scored against one hidden state (a fork in a token tree), which is multiplied once.

Shapes: U hidden states, H their width, V words, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quintain.trainers.model.precision import FAINTEST, low_precision, products

LOWEST = -1e30
"""Stands for "no logit seen yet" in running maxima; finite, so that differences to it are never NaN."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Size of a block of logits: at most `rows` hidden states × `words` words."""

    rows: int = 512
    words: int = 1024


@dataclass(frozen=True, slots=True)
class _Options:
    temperature: float
    scale: float
    softcap: float | None
    entropy: bool
    mass: bool
    blocks: Blocks

    @property
    def before(self) -> float:
        """What hidden states are multiplied with: everything linear that is done to the logits."""
        return self.scale if self.softcap is not None else self.scale / self.temperature


class Scored(NamedTuple):
    """Of T tokens: logp [T], and without a gradient what is known of the distributions they are from.

    best [T]: the highest log-probability there, which is `logp` where the token is the likeliest. entropy [T] in nats.
    log_mass [T]: log Σ p².
    """

    logp: Tensor
    best: Tensor
    entropy: Tensor | None
    log_mass: Tensor | None


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    mass: bool = False,
    blocks: Blocks | None = None,
) -> Scored:
    """What softmax(logits / temperature) says of `targets`; entropy and log_mass where they are asked for.

    hidden [U, H]; weight [V, H]; bias [V]; targets [T] int64; rows [T] int64 says which hidden state predicts each
    token (None: T = U, in order). logits = scale · (hidden @ weightᵀ + bias), then softcap · tanh(logits / softcap)
    where a soft cap is given (Gemma 2). Results are float32 (float64 for float64 inputs). Log-probabilities and
    entropies are differentiable in hidden, weight and bias, once.
    Raises ValueError for shapes that do not fit and a temperature that is not positive.
    """
    if rows is None:
        rows = torch.arange(len(hidden), device=hidden.device)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden [U, H] and weight [V, H], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.ndim != 1 or rows.shape != targets.shape:
        raise ValueError(
            f"expected one row for each target, got targets {tuple(targets.shape)} and rows {tuple(rows.shape)}"
        )
    if not temperature > 0:
        raise ValueError(
            f"the temperature must be positive, not {temperature}: greedy sampling has no log-probabilities"
        )
    options = _Options(temperature, scale, softcap, entropy, mass, blocks or Blocks())
    logp, *about = _ChunkedLogprobs.apply(hidden, weight, bias, targets, rows, options)  # type: ignore[no-untyped-call]
    best, entropies, masses = (values[rows] for values in about)
    return Scored(logp, best, entropies if entropy else None, masses if mass else None)


class LMHead(NamedTuple):
    """What makes logits out of hidden states: scale · (hidden @ weightᵀ + bias), held by the soft cap."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def log_softmax(self, hidden: Tensor, *, words: int, temperature: float) -> Tensor:
        """[U, words] of hidden [U, H], float32 at least: of the first `words` of the vocabulary."""
        bias = None if self.bias is None else self.bias[:words]
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight[:words], bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.log_softmax(logits / temperature, -1)


def chunked_divergence(
    hidden: Tensor,
    head: LMHead,
    theirs: Tensor,
    their_head: LMHead,
    *,
    beta: float,
    temperature: float,
    rows: int = 128,
) -> Tensor:
    """[U]: the generalised Jensen-Shannon divergence between the distributions of policy and teacher.

    hidden [U, H], theirs [U, H']: hidden states at the same places. Of vocabularies padded to other lengths the words
    of both count. Differentiable in `hidden` and `head`; logits of so many `rows` exist at a time, in the backward pass
    too.
    """
    words = min(len(head.weight), len(their_head.weight))

    def part(mine: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = their_head.log_softmax(other, words=words, temperature=temperature)
        return generalised_jsd(head.log_softmax(mine, words=words, temperature=temperature), teacher, beta)

    starts = range(0, len(hidden), rows)
    parts = [checkpoint(part, hidden[i : i + rows], theirs[i : i + rows], use_reentrant=False) for i in starts]
    return torch.cat(parts)


def generalised_jsd(policy: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """[U] of log-probabilities [U, V]: β·KL(teacher ‖ m) + (1−β)·KL(policy ‖ m), m = β·teacher + (1−β)·policy (GKD,
    arXiv 2306.13649, eq. 1); KL(teacher ‖ policy) at 0 and KL(policy ‖ teacher) at 1."""

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    if beta in (0.0, 1.0):
        return kl(policy, teacher) if beta else kl(teacher, policy)
    mixture = torch.logaddexp(policy + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(policy, mixture)


class _Pass:
    """One pass over the blocks of logits: the operands, their arithmetic, and where each token's logit is."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: Tensor, options: _Options
    ) -> None:
        self.low = low_precision(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # Away from the CPU 16-bit products give 16-bit results, which are widened before anything is summed.
        self.dtype = wide if self.low is None or hidden.device.type == "cpu" else self.low
        self.wide = wide
        self.hidden = (hidden.to(wide) * options.before).to(self.dtype)
        self.weight, self.bias, self.options = weight, bias, options
        self.count, self.words = len(hidden), len(weight)
        size = options.blocks
        self.row_starts = range(0, self.count, size.rows)
        self.word_starts = range(0, self.words, size.words)
        self.buffer = torch.empty(
            min(size.rows, self.count) * min(size.words, self.words), dtype=self.dtype, device=hidden.device
        )
        # Tokens ordered by block, and where each block's tokens begin.
        block = (targets // size.words) * len(self.row_starts) + rows // size.rows
        self.order = torch.argsort(block, stable=True)
        edges = torch.arange(len(self.row_starts) * len(self.word_starts) + 1, device=hidden.device)
        self.bounds: list[int] = torch.searchsorted(block[self.order], edges).tolist()

    def piece(self, start: int) -> tuple[slice, Tensor]:
        """The words of a block and their weights [words, H], in the arithmetic's type."""
        words = slice(start, min(start + self.options.blocks.words, self.words))
        return words, self.weight[words].to(self.dtype)

    def part(self, start: int) -> slice:
        """The rows of a block."""
        return slice(start, min(start + self.options.blocks.rows, self.count))

    def tokens(self, i: int, j: int) -> Tensor:
        """The tokens whose logit is in word block `i`, row block `j`."""
        at = i * len(self.row_starts) + j
        return self.order[self.bounds[at] : self.bounds[at + 1]]

    def logits(self, part: slice, words: slice, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits / temperature [rows, words], its derivative by the hidden product where that is not constant)."""
        hidden = self.hidden[part]
        shape = (len(hidden), len(weight))
        out = self.buffer[: shape[0] * shape[1]].view(shape)
        block = torch.mm(hidden, weight.t(), out=out).to(self.wide)
        if self.bias is not None:
            block += self.bias[words].to(self.wide) * self.options.before
        cap = self.options.softcap
        if cap is None:
            return block, None
        bent = block.div_(cap).tanh_()
        slope = (1 - bent.square()) / self.options.temperature
        return bent.mul_(cap / self.options.temperature), slope


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = _Pass(hidden, weight, bias, targets, rows, options)
        # Running softmax over word blocks (Milakov & Gimelshein 2018): the maximum so far, Σ exp(x), Σ exp(x)·x and
        # Σ exp(2x) with x the logit minus the maximum.
        highest = hidden.new_full((run.count,), LOWEST, dtype=run.wide)
        total, moment, squares = (torch.zeros_like(highest) for _ in range(3))
        picked = hidden.new_empty(targets.shape, dtype=run.wide)
        scratch = torch.empty_like(run.buffer, dtype=run.wide) if options.entropy else run.buffer
        with products(hidden.device, run.low):
            for i, word_start in enumerate(run.word_starts):
                words, piece = run.piece(word_start)
                for j, row_start in enumerate(run.row_starts):
                    part = run.part(row_start)
                    x, _ = run.logits(part, words, piece)
                    tokens = run.tokens(i, j)
                    picked[tokens] = x[rows[tokens] - row_start, targets[tokens] - word_start]
                    before = highest[part]
                    now = torch.maximum(before, x.amax(1))
                    x.sub_(now[:, None]).clamp_(min=FAINTEST)
                    shift = before - now
                    shrink = shift.exp()
                    weights = torch.exp(x, out=scratch[: x.numel()].view(x.shape)) if options.entropy else x.exp_()
                    moment[part] += shift * total[part]
                    total[part] = shrink * total[part] + weights.sum(1)
                    if options.mass:
                        squares[part] = shrink.square() * squares[part] + weights.square().sum(1)
                    if options.entropy:
                        moment[part] = shrink * moment[part] + weights.mul_(x).sum(1)
                    highest[part] = now
        log_total = total.log()
        # In this order a near-certain token keeps its digits: its logit minus the maximum is exactly zero.
        logp = (picked - highest[rows]) - log_total[rows]
        about = -log_total, log_total - moment / total, squares.log() - 2 * log_total
        ctx.save_for_backward(hidden, weight, bias, targets, rows, highest + log_total, about[1])
        ctx.options, ctx.low = options, run.low
        ctx.mark_non_differentiable(about[0], about[2])
        return (logp, *about)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor, pull: Tensor, __: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, rows, normaliser, level = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # Only tokens with a gradient, and only the hidden states that predict them.
        live = grad.nonzero()[:, 0]
        grad, targets = grad[live], targets[live]
        pulled = pull.nonzero()[:, 0]  # hidden states whose entropy has a gradient
        states, places = torch.unique(torch.cat([rows[live], pulled]), return_inverse=True)
        rows = places[: len(live)]
        with torch.autocast(hidden.device.type, dtype=ctx.low, enabled=ctx.low is not None):
            run = _Pass(hidden[states], weight, bias, targets, rows, ctx.options)
        grad = grad.to(run.wide)
        mass = torch.zeros(len(states), dtype=run.wide, device=grad.device).index_add_(0, rows, grad)
        normaliser, level, pull = normaliser[states], level[states], pull[states].to(run.wide)
        grad_hidden = torch.zeros(run.hidden.shape, dtype=run.wide, device=grad.device) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        with products(hidden.device, run.low):
            for i, word_start in enumerate(run.word_starts if len(states) else ()):
                words, piece = run.piece(word_start)
                of_piece: Tensor | None = None
                for j, row_start in enumerate(run.row_starts):
                    part = run.part(row_start)
                    x, slope = run.logits(part, words, piece)
                    # d logp / d logit = 1[word = target] − p, summed over the tokens of a hidden state, and
                    # d entropy / d logit = −p · (log p + entropy).
                    x.sub_(normaliser[part, None]).clamp_(min=FAINTEST)
                    factor = -mass[part, None]
                    if len(pulled):
                        factor = (x + level[part, None]).mul_(-pull[part, None]).add_(factor)
                    x.exp_().mul_(factor)
                    tokens = run.tokens(i, j)
                    x.index_put_(
                        (rows[tokens] - row_start, targets[tokens] - word_start), grad[tokens], accumulate=True
                    )
                    if slope is not None:
                        x.mul_(slope)
                    if grad_bias is not None:
                        grad_bias[words] += (x.sum(0) * ctx.options.before).to(grad_bias.dtype)
                    x = x.to(run.dtype)
                    if grad_hidden is not None:
                        _add_product(grad_hidden[part], x, piece)
                    if need_weight:
                        if of_piece is None:
                            of_piece = (x.t() @ run.hidden[part]).to(run.wide)
                        else:
                            _add_product(of_piece, x.t(), run.hidden[part])
                if grad_weight is not None and of_piece is not None:
                    grad_weight[words] = of_piece
        full = None
        if grad_hidden is not None:
            full = torch.zeros_like(hidden)
            full[states] = (grad_hidden * ctx.options.before).to(hidden.dtype)
        return full, grad_weight, grad_bias, None, None, None


def _add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into += a @ b, summed in the type of `into`."""
    if a.dtype == into.dtype:
        into.addmm_(a, b)
    else:
        into += a @ b
