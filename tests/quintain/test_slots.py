"""The fair queue and its slots: every item once, every group its turn, no slot lost or held twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.slots import FairQueue, Full, Slots


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
    slots.close(Failure.of(FailureKind.CANCELLED, Stage.SANDBOX, "it was closed"))
    with pytest.raises(FailureError, match="closed"):
        await waiting
    with pytest.raises(FailureError, match="closed"):
        await slots.acquire()


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_slots_go_to_the_one_that_waited_longest(capacity: int, queue: int, events: list[tuple[bool, int]]) -> None:
    async def live() -> None:
        slots = Slots(range(capacity), queue=queue)
        out: list[asyncio.Future[int]] = []
        line: list[asyncio.Future[int]] = []
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
            assert len({ticket.result() for ticket in out}) == len(out) <= capacity

    asyncio.run(live())


async def test_a_full_queue_says_so() -> None:
    slots = Slots([0], queue=1)
    slots.take()
    slots.take()
    with pytest.raises(Full):
        slots.take()


class QueueMachine(RuleBasedStateMachine):
    """Batches come, are taken from, partly put back, and dropped; plain lists say what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int, int] = FairQueue()
        self.waiting: dict[int, list[int]] = {}
        self.taken: list[tuple[int, list[int]]] = []
        self.batches = 0

    @rule(size=st.integers(0, 60))
    def add(self, size: int) -> None:
        self.batches += 1
        self.waiting[self.batches] = list(range(size))
        self.queue.add(self.batches, range(size))

    @precondition(lambda self: len(self.queue))
    @rule(most=st.integers(1, 8))
    def take(self, most: int) -> None:
        batch, items = self.queue.take(most)
        assert 1 <= len(items) <= most
        assert items == self.waiting[batch][: len(items)]
        del self.waiting[batch][: len(items)]
        self.taken.append((batch, items))

    @precondition(lambda self: self.taken)
    @rule(done=st.integers(0, 8))
    def put_back(self, done: int) -> None:
        batch, items = self.taken.pop()
        self.queue.put_back(batch, items[done:])
        self.waiting[batch] = items[done:] + self.waiting.get(batch, [])

    @precondition(lambda self: len(self.queue))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(sorted(batch for batch, items in self.waiting.items() if items)))
        item = data.draw(st.sampled_from(self.waiting[batch]))
        self.queue.remove(batch, item)
        self.waiting[batch].remove(item)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.drop(batch)
        self.waiting[batch] = []
        self.taken = [entry for entry in self.taken if entry[0] != batch]

    @invariant()
    def its_length_is_what_waits(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))


TestQueue = QueueMachine.TestCase


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 8))
def test_batches_take_turns(sizes: list[int], most: int) -> None:
    queue: FairQueue[int, int] = FairQueue()
    for batch, size in enumerate(sizes):
        queue.add(batch, range(size))
    left = Counter(dict(enumerate(sizes)))
    order: list[int] = []
    while len(queue):
        batch, items = queue.take(most)
        if batch in order:
            others = {other for other in left if other != batch and left[other] > 0}
            assert others <= set(order[len(order) - order[::-1].index(batch) :])
        left[batch] -= len(items)
        order.append(batch)
    assert sum(left.values()) == 0
