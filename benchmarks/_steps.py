"""How fast sessions step, for both sides of env_server.py; standard library only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


async def played(steps: Sequence[Callable[[], Awaitable[Any]]], seconds: float) -> None:
    """Step every session, each as soon as it was answered, for `seconds`; print the figures as one line of JSON."""
    took_s: list[float] = []
    began = time.perf_counter()

    async def session(step: Callable[[], Awaitable[Any]]) -> None:
        while (now := time.perf_counter()) - began < seconds:
            await step()
            took_s.append(time.perf_counter() - now)

    await asyncio.gather(*map(session, steps))
    rate = len(took_s) / (time.perf_counter() - began)
    took_s.sort()
    print(json.dumps({"steps_per_s": rate, "p99_s": took_s[len(took_s) * 99 // 100]}))
