"""Slots are given out in order, never more than there are."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs.workers.slots import Full, Slots


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_slots_go_to_the_one_that_waited_longest(capacity, queue, events):
    async def live() -> None:
        slots = Slots(capacity, queue)
        out: list[asyncio.Future[None]] = []
        line: list[asyncio.Future[None]] = []
        for take, which in events:
            if take:
                try:
                    ticket = slots.take()
                except Full:
                    assert len(out) == capacity
                    assert len(line) == queue
                    continue
                (out if ticket.done() else line).append(ticket)
            elif out or line:
                everyone = out + line
                chosen = everyone[which % len(everyone)]
                slots.give_back(chosen)
                if chosen in line:
                    line.remove(chosen)
                    assert chosen.cancelled()
                else:
                    out.remove(chosen)
                    if line:
                        out.append(line.pop(0))
            assert all(ticket.done() for ticket in out)
            assert not any(ticket.done() for ticket in line)
            assert (slots.taken, slots.waiting) == (len(out), len(line))
            assert len(out) <= capacity

    asyncio.run(live())


async def test_a_full_queue_says_so():
    slots = Slots(1, 1)
    slots.take()
    slots.take()
    with pytest.raises(Full):
        slots.take()
