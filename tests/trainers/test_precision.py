"""The switch for products of bfloat16 factors, under threads that want it on and threads that want it off."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintain.trainers.model.precision import keep_exact, products

CPU = torch.device("cpu")


def switch() -> Any:
    return torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]


class Within:
    """A thread that is in `products` from when it is made until `leave`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._inside, self._go = Event(), Event()
        self._done = pool.submit(self._stay)
        assert self._inside.wait(60)

    def leave(self) -> None:
        self._go.set()
        self._done.result(60)

    def _stay(self) -> None:
        with products(CPU, torch.bfloat16):
            self._inside.set()
            assert self._go.wait(60)


class AngleRotaryEmbedding(nn.Module):
    """The angles as transformers 5.0 makes them; says how the switch was, and breaks for empty positions."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = 10_000.0 ** -(torch.arange(32) / 32)
        self.seen: list[Any] = []

    def forward(self, positions: Tensor) -> Tensor:
        self.seen.append(switch())
        if not positions.numel():
            raise ValueError("no positions")
        with torch.autocast("cpu", enabled=False):
            return (self.frequencies[None, :, None] @ positions[:, None, :].float()).mT


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_the_switch_is_on_for_the_last_thread_and_off_after_it(pool: ThreadPoolExecutor) -> None:
    before = switch()
    first, second = Within(pool), Within(pool)
    first.leave()
    assert switch() == "bf16"
    second.leave()
    assert switch() == before


def test_rotary_angles_wait_until_the_switch_is_off_and_are_exact(pool: ThreadPoolExecutor) -> None:
    rotary = AngleRotaryEmbedding()
    keep_exact(nn.Sequential(rotary))
    keep_exact(nn.Sequential(rotary))  # once is enough
    positions = torch.arange(2000)[None]
    exact, before = rotary(positions), switch()
    low = Within(pool)
    angles: Future[Tensor] = pool.submit(rotary, positions)
    assert not angles.done()
    low.leave()
    assert torch.equal(angles.result(60), exact)
    assert rotary.seen == [before, before]
    with pytest.raises(ValueError, match="no positions"):
        rotary(positions[:, :0])
    Within(pool).leave()  # an error keeps nobody out
