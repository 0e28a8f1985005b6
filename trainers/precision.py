"""Which arithmetic a matrix product of ours runs in.

Invariant: sums are float32 or wider, and so is every result; only the factors of a product may be rounded to bfloat16.
A bfloat16 *result* would round a logit of 20 to the nearest 1/8, far more than log-probabilities can bear.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

FAINTEST = -50.0
"""Exponents are held above this. e^−50 is zero next to the 1 that every softmax sum holds, and far enough above the
smallest normal float32 (1.2e-38) that its products with gradients are no denormal numbers, which make exponentials
and matrix products on a CPU many times slower."""


def low_precision(tensor: Tensor) -> torch.dtype | None:
    """The 16-bit type that products with `tensor` are allowed to use, None where they must be exact.

    Autocast decides where it is on; elsewhere the type of `tensor` itself does.
    """
    kind = tensor.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


@contextmanager
def products(device: torch.device, low: torch.dtype | None) -> Iterator[None]:
    """Autocast off; float32 products on a CPU use its bfloat16 units where `low` allows it.

    Sums and results stay float32. The switch is oneDNN's, and global to the process: float32 products that other
    threads do meanwhile may use them too. A CPU without such units ignores it.
    """
    onednn: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    switch = device.type == "cpu" and low is torch.bfloat16
    before = onednn.fp32_precision
    with torch.autocast(device.type, enabled=False):
        if switch:
            onednn.fp32_precision = "bf16"
        try:
            yield
        finally:
            if switch:
                onednn.fp32_precision = before
