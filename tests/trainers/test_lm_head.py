"""The chunked LM head against torch's own softmax, closed forms and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from quintain.trainers.model.lm_head import Blocks, chunked_logprobs

torch.set_num_threads(1)

SMALL = Blocks(rows=3, words=5)  # several blocks each way, the last ones ragged
U, H, V = 7, 6, 23
ROWS = torch.tensor([0, 0, 1, 2, 3, 3, 5, 6, 6])  # hidden state 4 predicts nothing
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "scale": {"scale": 0.25, "temperature": 1.5},
    "softcap": {"softcap": 1.5, "temperature": 0.7, "scale": 1.3},
    "one block": {"blocks": Blocks(rows=100, words=100), "temperature": 0.7},
}


def operands(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden [U, H], weight [V, H], bias [V], targets [T]); two tokens of one hidden state are the same word."""
    torch.manual_seed(seed)
    hidden, weight, bias = torch.randn(U, H), torch.randn(V, H), torch.randn(V)
    targets = torch.randint(0, V, (len(ROWS),))
    targets[1] = targets[0]
    return (*(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets)  # type: ignore[return-value]


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    """log-softmax [U, V] with the vocabulary in full."""
    logits = functional.linear(hidden, weight, bias) * options.get("scale", 1.0)
    if (cap := options.get("softcap")) is not None:
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits / options.get("temperature", 1.0), -1)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_value_entropy_and_gradient_are_those_of_the_full_softmax(options: dict[str, Any], with_bias: bool) -> None:
    hidden, weight, bias, targets = operands()
    used = (hidden, weight, bias) if with_bias else (hidden, weight)
    arguments = {"blocks": SMALL} | options
    logp, best, entropy, mass = chunked_logprobs(
        hidden, weight, targets, rows=ROWS, bias=bias if with_bias else None, entropy=True, mass=True, **arguments
    )
    full = reference(hidden, weight, bias if with_bias else None, **options)
    torch.testing.assert_close(logp, full[ROWS, targets])
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1)[ROWS])
    torch.testing.assert_close(best, full.amax(-1)[ROWS])
    torch.testing.assert_close(mass, full.exp().square().sum(-1).log()[ROWS])
    upstream = torch.randn(len(ROWS), dtype=logp.dtype)
    upstream[4] = 0
    got = torch.autograd.grad(logp, used, upstream)
    expected = torch.autograd.grad(full[ROWS, targets], used, upstream)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_gradient_agrees_with_finite_differences(options: dict[str, Any]) -> None:
    hidden, weight, bias, targets = operands()
    arguments = {"blocks": SMALL} | options

    def logp(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return chunked_logprobs(hidden, weight, targets, rows=ROWS, bias=bias, **arguments)[0]

    assert torch.autograd.gradcheck(logp, (hidden, weight, bias))


def test_without_rows_each_hidden_state_predicts_one_token() -> None:
    hidden, weight, _, _ = operands()
    targets = torch.arange(U)
    logp, _, entropy, _ = chunked_logprobs(hidden, weight, targets, blocks=SMALL)
    torch.testing.assert_close(logp, reference(hidden, weight, None).gather(1, targets[:, None])[:, 0])
    assert entropy is None


def test_the_entropy_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> None:
    targets = torch.tensor([1, 2])
    _, _, entropy, _ = chunked_logprobs(torch.zeros(2, H), torch.randn(V, H), targets, entropy=True, blocks=SMALL)
    assert entropy is not None
    assert entropy.tolist() == pytest.approx([math.log(V)] * 2)
    assert not entropy.requires_grad


def test_a_frozen_weight_gets_no_gradient_and_hidden_states_the_same_one() -> None:
    hidden, weight, bias, targets = operands()
    expected = torch.autograd.grad(chunked_logprobs(hidden, weight, targets, rows=ROWS, bias=bias)[0].sum(), hidden)[0]
    frozen = weight.detach()
    logp, *_ = chunked_logprobs(hidden, frozen, targets, rows=ROWS, bias=bias.detach(), blocks=SMALL)
    logp.sum().backward()
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected)


def test_a_tied_embedding_gets_the_gradients_of_both_its_uses() -> None:
    _, weight, _, targets = operands()
    ids = torch.randint(0, V, (len(ROWS),))

    def gradient(head: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(head(torch.tanh(functional.embedding(ids, weight))).sum(), weight)[0]

    got = gradient(lambda hidden: chunked_logprobs(hidden, weight, targets, blocks=SMALL)[0])
    expected = gradient(lambda hidden: reference(hidden, weight, None).gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(got, expected)


def test_tokens_without_an_upstream_gradient_are_not_touched_by_the_backward_pass() -> None:
    hidden, weight, _, targets = operands()
    logp, *_ = chunked_logprobs(hidden, weight, targets, rows=ROWS, blocks=SMALL)
    upstream = torch.where(ROWS == 3, 0.0, torch.randn(len(ROWS))).double()
    hidden.data[3] = hidden.data[4] = math.nan  # behind autograd's back: whoever reads these now spreads them
    got = torch.autograd.grad(logp, (hidden, weight), upstream)
    assert all(bool(torch.isfinite(x).all()) for x in got)


def test_no_gradient_at_all_costs_no_product() -> None:
    hidden, weight, _, targets = operands()
    logp, *_ = chunked_logprobs(hidden, weight, targets, rows=ROWS, blocks=SMALL)
    with Watched() as watched:
        got = torch.autograd.grad(logp, (hidden, weight), torch.zeros_like(logp))
    assert not any("mm" in name for name in watched.calls)
    assert not any(bool(x.any()) for x in got)


class Watched(TorchDispatchMode):
    """Notes what is called, and the largest result other than those of the sizes in `ignored`."""

    def __init__(self, *ignored: int) -> None:
        super().__init__()
        self.ignored, self.calls, self.largest = set(ignored), list[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() // x.element_size() not in self.ignored:
                self.largest = max(self.largest, x.numel())
        return result


def test_no_tensor_as_large_as_positions_times_vocabulary_is_ever_made() -> None:
    positions, width, words = 64, 8, 1000
    hidden, weight = torch.randn(positions, width, requires_grad=True), torch.randn(words, width, requires_grad=True)
    targets = torch.randint(0, words, (positions,))
    with Watched() as watched:
        logp, *_ = chunked_logprobs(hidden, weight, targets, entropy=True, blocks=Blocks(rows=16, words=100))
        logp.sum().backward()
    assert watched.largest <= words * width  # the weight's own gradient
    with Watched() as naive:
        torch.log_softmax(hidden @ weight.t(), -1)
    assert naive.largest == positions * words


def test_a_near_certain_token_keeps_a_log_probability_of_the_right_size() -> None:
    weight = torch.zeros(50, 4)
    weight[7] = 1.0
    hidden = torch.full((1, 4), 4.0)  # logit 16 against 49 zeros: logp = −49 e^−16, to first order
    logp, *_ = chunked_logprobs(hidden, weight, torch.tensor([7]), blocks=SMALL)
    exact = -math.log1p(49 * math.exp(-16))
    assert logp.item() == pytest.approx(exact, rel=0.1)
    assert torch.log_softmax(hidden.double() @ weight.double().t(), -1)[0, 7].item() == pytest.approx(exact)


def test_huge_logits_give_finite_values_and_gradients() -> None:
    hidden, weight, _, targets = operands(torch.float32)
    large = (hidden.detach() * 1e6).requires_grad_()
    logp, _, entropy, _ = chunked_logprobs(large, weight, targets, rows=ROWS, entropy=True, blocks=SMALL)
    assert entropy is not None
    grads = torch.autograd.grad(logp.sum(), (large, weight))
    assert all(bool(torch.isfinite(x).all()) for x in (logp, entropy, *grads))
    assert bool((entropy >= 0).all())


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_sixteen_bit_products_leave_sums_and_gradients_of_the_weight_in_its_own_type(weights: torch.dtype) -> None:
    torch.manual_seed(0)
    # Values that bfloat16 holds exactly: what differs then is only how products are summed and results are kept.
    hidden = torch.randn(33, 64).bfloat16().to(weights).requires_grad_()
    weight = torch.randn(301, 64).bfloat16().to(weights).requires_grad_()
    targets = torch.randint(0, 301, (33,))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        logp, _, entropy, _ = chunked_logprobs(hidden, weight, targets, entropy=True, blocks=Blocks(16, 50))
    logp.sum().backward()
    exact = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    full = torch.log_softmax(exact[0] @ exact[1].t(), -1)
    full.gather(1, targets[:, None]).sum().backward()
    assert logp.dtype == torch.float32
    assert entropy is not None
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (weights, weights)
    # Logits reach 30, where bfloat16 results would be off by up to 1/16.
    torch.testing.assert_close(logp.double(), full.gather(1, targets[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy.double(), -(full.exp() * full).sum(-1), atol=1e-4, rtol=1e-4)
    for got, expected in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert expected is not None
        assert float((got.double() - expected).norm() / expected.norm()) < 0.01


def test_the_switch_for_sixteen_bit_products_is_set_back_even_after_an_error() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises((RuntimeError, IndexError)):
        chunked_logprobs(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([1, 100]))
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("hidden", "targets", "rows", "temperature", "message"),
    [
        ((2, 4), (2,), None, 1.0, "hidden"),
        ((2, 3), (3,), None, 1.0, "one row for each target"),
        ((2, 3), (2,), (3,), 1.0, "one row for each target"),
        ((2, 3), (2,), None, 0.0, "temperature must be positive"),
        ((2, 3), (2,), None, math.nan, "temperature must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    hidden: tuple[int, int], targets: tuple[int], rows: tuple[int] | None, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_logprobs(
            torch.zeros(hidden),
            torch.zeros(5, 3),
            torch.zeros(targets, dtype=torch.int64),
            rows=None if rows is None else torch.zeros(rows, dtype=torch.int64),
            temperature=temperature,
        )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_logp", [False, True])
def test_entropies_have_the_gradient_of_the_naive_ones(softcap: float | None, with_logp: bool) -> None:
    """Several tokens of one hidden state, some without a gradient of either kind."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((7, 5), (23, 5), (23,)))
    rows, targets = torch.tensor([0, 0, 1, 3, 4, 4, 6]), torch.randint(0, 23, (7,), generator=g)
    pull = torch.randn(7, generator=g, dtype=torch.float64) * torch.tensor([1, 1, 0, 1, 0, 1, 0])
    push = torch.randn(7, generator=g, dtype=torch.float64) * with_logp
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    found = chunked_logprobs(
        hidden, weight, targets, rows=rows, bias=bias, temperature=0.7, softcap=softcap, entropy=True,
        blocks=Blocks(rows=3, words=8),
    )  # fmt: skip
    assert found.entropy is not None
    ours = torch.autograd.grad((found.entropy * pull).sum() + (found.logp * push).sum(), inputs)
    logits = hidden @ weight.t() + bias
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    scores = torch.log_softmax(logits / 0.7, -1)[rows]
    entropy = -(scores.exp() * scores).sum(-1)
    logp = scores[torch.arange(7), targets]
    naive = torch.autograd.grad((entropy * pull).sum() + (logp * push).sum(), inputs)
    for one, other in zip(ours, naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
