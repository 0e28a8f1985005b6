"""Linear layers with their weights laid out for the processor once, not at every call.

oneDNN's matrix kernels want the weights in blocks. Given plain ones they copy them into blocks at every call, which
costs as much as the product itself where there are few rows (measured with 64 rows and SmolLM2's shapes, one core,
bf16: 240 against 430 to 700 GFLOP/s). Invariant: a packed layer gives what the plain one gives, to rounding; a
machine or a type that cannot pack gets the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""[N, I] -> [N, O]."""

_ROWS_HINT = 64  # the layout is best for about this many rows, and works for any number


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine has blocked kernels for `dtype`."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The linear layer with `weight` [O, I] and `bias` [O], of which it keeps nothing but copies."""
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return partial(torch.nn.functional.linear, weight=weight.clone(), bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    return partial(_packed, packed, bias)


def _packed(weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result
