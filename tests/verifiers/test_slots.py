"""Slots go round fairly, and none is ever lost or held twice."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.failure import FailureError
from quintain.verifiers.workers.slots import Slots


async def test_groups_take_turns_and_each_goes_in_order() -> None:
    slots = Slots([0])
    order: list[str] = []
    holder = await slots.acquire()

    async def caller(name: str, group: str) -> None:
        slot = await slots.acquire(group)
        order.append(name)
        await asyncio.sleep(0)
        slots.release(slot)

    callers = [asyncio.create_task(caller(f"{group}{i}", group)) for group in "ab" for i in range(4)]
    callers += [asyncio.create_task(caller("c0", "c"))]
    await asyncio.sleep(0)
    slots.release(holder)
    await asyncio.gather(*callers)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "b3"]


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=50)
def test_no_slot_is_lost_or_held_twice_whoever_gives_up(count: int, callers: int, seed: int) -> None:
    rng = random.Random(seed)

    async def play() -> None:
        slots = Slots(range(count))
        held: set[int] = set()

        async def caller(number: int) -> None:
            slot = await slots.acquire(number % 3)
            assert slot not in held
            held.add(slot)
            try:
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                held.discard(slot)
                slots.release(slot)

        tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
        for _ in range(callers):
            await asyncio.sleep(0)
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert {await slots.acquire() for _ in range(count)} == set(range(count))

    asyncio.run(play())


async def test_those_who_wait_learn_that_it_was_closed() -> None:
    slots: Slots[int] = Slots([])
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.close()
    with pytest.raises(FailureError, match="closed"):
        await waiting
    with pytest.raises(FailureError, match="closed"):
        await slots.acquire()
