"""The fair queue: every item once, in order, and every batch its turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quintain.verifiers.workers.queue import MAX_CHUNK, FairQueue


class QueueMachine(RuleBasedStateMachine):
    """Batches come, are taken from, partly put back, and dropped; plain lists say what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[int, list[int]] = {}
        self.taken: list[tuple[int, list[int]]] = []
        self.batches = 0

    @rule(size=st.integers(0, 60))
    def add(self, size: int) -> None:
        self.batches += 1
        self.waiting[self.batches] = list(range(size))
        self.queue.add(self.batches, range(size))

    @precondition(lambda self: len(self.queue))
    @rule(workers=st.integers(1, 4))
    def take(self, workers: int) -> None:
        batch, indices = self.queue.take(workers)
        assert 1 <= len(indices) <= MAX_CHUNK
        assert indices == self.waiting[batch][: len(indices)]
        del self.waiting[batch][: len(indices)]
        self.taken.append((batch, indices))

    @precondition(lambda self: self.taken)
    @rule(done=st.integers(0, MAX_CHUNK))
    def put_back(self, done: int) -> None:
        batch, indices = self.taken.pop()
        self.queue.put_back(batch, indices[done:])
        self.waiting[batch] = indices[done:] + self.waiting.get(batch, [])

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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 4))
def test_batches_take_turns(sizes: list[int], workers: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for batch, size in enumerate(sizes):
        queue.add(batch, range(size))
    left = Counter(dict(enumerate(sizes)))
    order: list[int] = []
    while len(queue):
        batch, indices = queue.take(workers)
        if batch in order:
            others = {other for other in left if other != batch and left[other] > 0}
            assert others <= set(order[len(order) - order[::-1].index(batch) :])
        left[batch] -= len(indices)
        order.append(batch)
    assert sum(left.values()) == 0


def test_the_last_items_are_taken_one_by_one() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", range(7))
    assert [queue.take(2)[1] for _ in range(7)] == [[0], [1], [2], [3], [4], [5], [6]]


def test_a_long_queue_is_taken_in_chunks() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", range(1000))
    assert queue.take(2) == ("a", list(range(MAX_CHUNK)))
