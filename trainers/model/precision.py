"""Which arithmetic a matrix product of ours runs in.

Invariant: sums are float32 or wider, and so is every result; only the factors of a product may be rounded to bfloat16.
A bfloat16 *result* would round a logit of 20 to the nearest 1/8, far more than log-probabilities can bear.

On a CPU, float32 results of bfloat16 factors can only be had by a switch that is global to the process. So that no
thread's products depend on what another does at the time: where one thread needs the switch on and another off, one
waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn

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


class _Switch:
    """oneDNN's leave to use a CPU's bfloat16 units for float32 products, shared by the threads of the process.

    A CPU without such units ignores it.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._on = 0  # threads that need it on
        self._off = 0  # threads that need it off, or wait for that: they are few and short, so they go first
        self._before: str = ""

    def turn_on(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._off)
            if not self._on:
                self._before, _matmul().fp32_precision = _matmul().fp32_precision, "bf16"
            self._on += 1

    def leave_on(self) -> None:
        with self._changed:
            self._on -= 1
            if not self._on:
                _matmul().fp32_precision = self._before
                self._changed.notify_all()

    def keep_off(self) -> None:
        with self._changed:
            self._off += 1
            self._changed.wait_for(lambda: not self._on)

    def leave_off(self) -> None:
        with self._changed:
            self._off -= 1
            self._changed.notify_all()


def _matmul() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


_switch = _Switch()


@contextmanager
def products(device: torch.device, low: torch.dtype | None) -> Iterator[None]:
    """Autocast off; float32 products on a CPU use its bfloat16 units where `low` allows it. Sums stay float32.

    What runs inside must not call modules that `keep_exact` has been given.
    """
    switch = device.type == "cpu" and low is torch.bfloat16
    with torch.autocast(device.type, enabled=False):
        if switch:
            _switch.turn_on()
        try:
            yield
        finally:
            if switch:
                _switch.leave_on()


def keep_exact(model: nn.Module) -> None:
    """Have the float32 products that a transformers model makes on purpose, even under autocast, stay float32.

    Those are its rotary angles: in bfloat16, which has 8 bits, positions and frequencies would both be rounded.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding") and _keep_off not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_keep_off)
            module.register_forward_hook(_leave_off, always_call=True)


def _keep_off(module: nn.Module, inputs: Any) -> None:
    _switch.keep_off()


def _leave_off(module: nn.Module, inputs: Any, output: Any) -> None:
    _switch.leave_off()
