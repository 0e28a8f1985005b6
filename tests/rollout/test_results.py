"""What finished and was not fetched is bounded, and nothing unread is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from quintain.rollout.server.task_runs import Results

LIMIT = 100


class ResultsMachine(RuleBasedStateMachine):
    """Several runs whose groups come, are acknowledged and are closed, against a model that remembers everything."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.results = Results(LIMIT)
        self.put: dict[str, list[bytes]] = {}
        self.read: dict[str, int] = {}
        self.made = 0

    @rule(target=runs)
    def open(self) -> str:
        self.made += 1
        name = f"run{self.made}"
        self.results.open(name)
        self.put[name], self.read[name] = [], 0
        return name

    @rule(run=runs, size=st.integers(0, 40))
    def finish(self, run: str, size: int) -> None:
        group = bytes([len(self.put[run]) % 256]) * size
        self.results.put(run, group)
        self.put[run].append(group)

    @rule(run=runs, cursor=st.integers(0, 30))
    def acknowledge(self, run: str, cursor: int) -> None:
        self.results.acknowledge(run, cursor)
        self.read[run] = max(self.read[run], min(cursor, len(self.put[run])))

    @rule(run=consumes(runs))
    def close(self, run: str) -> None:
        self.results.close(run)
        del self.put[run], self.read[run]

    @invariant()
    def nothing_unread_is_lost(self) -> None:
        for run, groups in self.put.items():
            assert self.results.count(run) == len(groups)
            assert self.results.kept_from(run) <= self.read[run]
            for place, group in enumerate(groups):
                kept = None if place < self.results.kept_from(run) else group
                assert self.results.get(run, place) == kept
            assert self.results.get(run, len(groups)) is None

    @invariant()
    def memory_is_what_is_unread_or_within_the_limit(self) -> None:
        unread = sum(len(group) for run, groups in self.put.items() for group in groups[self.read[run] :])
        held = sum(len(g) for run, groups in self.put.items() for g in groups[self.results.kept_from(run) :])
        assert self.results.held_bytes == held
        assert self.results.room == (unread < LIMIT)
        read_and_kept = any(self.results.kept_from(run) < self.read[run] for run in self.put)
        assert held <= LIMIT or not read_and_kept


TestResults = ResultsMachine.TestCase


@given(st.lists(st.integers(0, 50), max_size=30))
def test_a_reader_who_never_acknowledges_loses_nothing_however_much_there_is(sizes: list[int]) -> None:
    results = Results(LIMIT)
    results.open("a")
    for size in sizes:
        results.put("a", b"x" * size)
    assert [len(results.get("a", place) or b"") for place in range(len(sizes))] == sizes
